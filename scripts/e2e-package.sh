#!/usr/bin/env bash
# e2e-package.sh [PACKAGE]: the Debian package in a fresh Debian 12 that its systemd runs: installed, it
# runs, passes and stores; upgraded, it keeps a configuration that was changed; removed, nothing of it
# runs, and purged, nothing of it is left.
#
# PACKAGE is made of the debug build where none is named. The fresh system is kept in
# ${DISCOBOT_TEST_CACHE:-${XDG_CACHE_HOME:-~/.cache}/discobot-proxy}. Root, cgroup v2.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/blocks.sh
. "$here/blocks.sh"
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"
# shellcheck source=scripts/machine.sh
. "$here/machine.sh"

main() {
  local package base
  "$here/setup-tests.sh"
  package=$(realpath "${1:-$("$here/package.sh" --debug)}")
  base=$(cache_dir)/service
  mkdir -p "$(cache_dir)"
  (
    flock 9
    [ -d "$base" ] || base_system bookworm "$base" systemd,systemd-sysv,dbus,curl
  ) 9>"$base.lock"
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-package.XXXXXX")
  trap 'machine_finish "$scratch/systemd.log" "$scratch/dpkg.log"' EXIT
  trap 'exit 1' INT TERM
  if ! machine_start "$scratch" "$package" "$base" "$scratch"; then
    echo "e2e-package.sh: NOT CHECKED: no cgroup v2 that can be written to" >&2
    return 0
  fi
  installed
  upgraded
  removed
  echo "e2e-package.sh: all well"
}

inside() {
  local package=$1 base=$2 scratch=$3
  machine_root "$base" "$scratch"
  install -D -m 644 "$package" "$scratch/root/run/build/target/debian/$(basename "$package")"
  machine_boot "$scratch/root"
}

installed() {
  local line
  line=$(inline "$here/../README.md" 'apt install ./target/debian/discobot-proxy_*.deb')
  there sh -euc "cd /run/build; $line" >"$scratch/dpkg.log" 2>&1 || fail "it can't be installed"
  await "$shell" 'the proxy is up' healthy
  there systemctl is-active --quiet discobot-proxy.socket || fail "systemd does not hold its port"
  there curl --silent --fail --output /dev/null http://127.0.0.1:17080/ || fail "no client can come"
  [ "$(there stat --format %U:%G:%a /etc/discobot-proxy/config.yaml)" = root:discobot-proxy:640 ] ||
    fail "others can read its configuration"
  there test -s /usr/share/man/man1/discobot-proxy.1.gz || fail "it has no manual"
  there bash -c '. /usr/share/bash-completion/completions/discobot-proxy; complete -p discobot-proxy' \
    >/dev/null || fail "bash completes nothing"
}

upgraded() {
  there sed -i '$a # mine' /etc/discobot-proxy/config.yaml
  there sh -euc 'dpkg --install /run/build/target/debian/*.deb' >>"$scratch/dpkg.log" 2>&1 ||
    fail "no upgrade"
  await "$shell" 'the proxy is up again' healthy
  there grep -qx '# mine' /etc/discobot-proxy/config.yaml || fail "the configuration was overwritten"
}

removed() {
  local left
  there dpkg --remove discobot-proxy >>"$scratch/dpkg.log" 2>&1 || fail "it can't be removed"
  ! healthy || fail "it still runs"
  ! there curl --silent http://127.0.0.1:17080/ || fail "its port is still held"
  there test -e /var/lib/discobot-proxy/certs/ca.key || fail "its CA went with the program"
  there dpkg --purge discobot-proxy >>"$scratch/dpkg.log" 2>&1 || fail "it can't be purged"
  left=$(there find / -xdev -path '*discobot*' -not -path '/run/*' -not -path '/tmp/*')
  [ -z "$left" ] || fail "left behind: $left"
}

healthy() {
  there curl --silent --fail http://127.0.0.1:17081/health
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
else
  main "$@"
fi
