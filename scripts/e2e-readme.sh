#!/usr/bin/env bash
# e2e-readme.sh [BINARY]: types the commands of README.md and of the documents it leads to, each block by its
# place and those in sentences as they stand, on one machine that is the proxy's host and a client at once: in
# namespaces with no way out, where changes to /etc and the like are gone afterwards, and where two
# docker-registries have the names of Docker Hub and ghcr.io.
#
# BINARY is target/release/discobot-proxy where none is named, built first. Root, Linux.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/blocks.sh
. "$here/blocks.sh"
# shellcheck source=scripts/registry.sh
. "$here/registry.sh"

HUB='registry-1.docker.io'
GHCR=ghcr.io

main() {
  local binary
  "$here/setup-tests.sh"
  binary=$(binary_of "${1:-}")
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-readme.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  # Whatever is started inside ends with its first process, this script's second half.
  env -i PATH="$PATH" HOME="$scratch" CURL_HOME="$scratch" ${CARGO_TARGET_DIR:+"CARGO_TARGET_DIR=$CARGO_TARGET_DIR"} \
    CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" \
    unshare --net --mount --pid --ipc --fork --kill-child --mount-proc "$0" --inside "$binary" "$scratch"
}

inside() {
  local binary=$1
  scratch=$2
  trap 'logs $?' EXIT
  machine "$binary"
  registries
  (cd "$here/.." && cat README.md docs/CLIENTS.md docs/OPERATING.md docs/DEVELOPMENT.md) >"$scratch/documents"
  cd "$scratch/host"
  cp "$scratch/ghcr/srv.crt" registry.crt
  pinned=$(typed pin)
  configure
  start
  typed client >/dev/null
  typed podman >/dev/null
  ci
  engine
  [[ $(typed doctor) == *'comes from its cache'* ]] || fail "doctor found no hit"
  see
  typed warm >/dev/null
  images
  command_line
  host
  users
  echo "e2e-readme.sh: all well"
}

# The folders that the commands change, under a layer that goes with this namespace.
machine() {
  local dir at=0
  mkdir "$scratch/files" "$scratch/bin" "$scratch/host" "$scratch/containers"
  mount -t tmpfs tmpfs "$scratch/files"
  for dir in /etc /usr/local/share /var/lib; do
    at=$((at + 1))
    mkdir "$scratch/files/$at" "$scratch/files/$at.work"
    mount -t overlay overlay \
      -o "lowerdir=$dir,upperdir=$scratch/files/$at,workdir=$scratch/files/$at.work" "$dir"
  done
  mkdir -p /var/lib/containers
  mount --bind "$scratch/containers" /var/lib/containers
  mount -t tmpfs tmpfs /run
  ip link set lo up
  ip addr add 10.78.0.5/32 dev lo
  ip addr add 10.78.0.6/32 dev lo
  printf '%s\n' '127.0.0.1 localhost' "10.78.0.5 $HUB PROXY" "10.78.0.6 $GHCR" >/etc/hosts
  # A refusal is curl's failure too.
  echo fail >"$scratch/.curlrc"
  ln -s "$1" "$scratch/bin/discobot-proxy"
  printf '#!/bin/sh\n[ "$1" != -E ] || shift\nexec "$@"\n' >"$scratch/bin/sudo"
  # The build that is tested, in the place of the one that would be made.
  printf '#!/bin/sh\n[ "$*" = "run --release" ] && exec discobot-proxy\nexec "%s" "$@"\n' \
    "$(command -v cargo)" >"$scratch/bin/cargo"
  chmod +x "$scratch/bin/sudo" "$scratch/bin/cargo"
  PATH=$scratch/bin:$PATH
}

registries() {
  mkdir "$scratch/layer"
  head -c 100000 /dev/urandom >"$scratch/layer/file"
  "$here/oci-layout.sh" "$scratch/layout" v1 "$scratch/layer"
  registry_start "$scratch/hub" "$HUB" 10.78.0.5
  registry_start "$scratch/ghcr" "$GHCR" 10.78.0.6
  registry_fill "$scratch/layout" "$HUB/library/alpine:latest"
  registry_fill "$scratch/layout" "$HUB/library/alpine:3.20"
  registry_fill "$scratch/layout" "$GHCR/org/app:1.2"
  echo ghcr.io/org/app:1.2 >"$scratch/host/images.txt"
}

# typed PLACE [SED]: the block of that place, its capitals filled in by the expression. Without a terminal,
# so that a password is read from the standard input.
typed() {
  local text
  text=$(block_of "$scratch/documents" "$1")
  setsid --wait bash -euo pipefail -c "$(sed "${2:-}" <<<"$text")" 2>"$scratch/$1.log" ||
    fail "the block '$1': $(tail -n 3 "$scratch/$1.log")"
}

# typed_inline COMMAND [SED]: the same for a command in a sentence.
typed_inline() {
  local text
  text=$(inline "$scratch/documents" "$1")
  setsid --wait bash -euo pipefail -c "$(sed "${2:-}" <<<"$text")" 2>"$scratch/inline.log" ||
    fail "'$1': $(tail -n 3 "$scratch/inline.log")"
}

configure() {
  cat >config.yaml <<CONFIG
tls: {upstream_ca: [$scratch/hub/ca.crt], pins: {$GHCR: ["sha256/$pinned"]}}
${1:-}
CONFIG
}

start() {
  typed host >"$scratch/proxy.log" &
  await $! "the proxy answers" curl --silent http://127.0.0.1:17081/health
  proxy=$(pgrep -x discobot-proxy)
  [[ $(typed_inline 'curl http://PROXY:17080/') == *http://proxy:17080/setup/docker* ]] ||
    fail "the proxy's page names no script"
  local sum said
  sum=$(typed_inline 'discobot-proxy ca | sha256sum')
  said=$(typed start)
  [[ $said == *"(sha256 ${sum%% *})"* ]] || fail "another sum than $sum: $said"
  podman rmi --force docker.io/library/alpine >/dev/null
}

# A job's shell: what it is told to read names the proxy.
ci() {
  typed_inline 'curl -fsSL http://PROXY:17080/setup/ci | sudo -E sh' >/dev/null
  (
    set -a
    # The script has just made it.
    # shellcheck disable=SC1091
    . "$scratch/host/discobot.env"
    curl --silent --fail --output /dev/null "https://$GHCR/v2/"
  ) || fail "a job does not get through the proxy"
}

# As its unit would start it: the script has written a drop-in for an engine as old as Debian 12's.
engine() {
  local unit=/etc/systemd/system/docker.service.d/discobot-proxy.conf pulled
  # Words of the line are variables.
  # shellcheck disable=SC2046
  env $(sed -n 's/^Environment=//p' "$unit") dockerd --data-root "$scratch/engine" \
    --iptables=false --ip6tables=false --bridge=none >"$scratch/engine.log" 2>&1 &
  await $! "the engine answers" docker version
  [[ $(typed_inline 'docker info') == *http://proxy:17080* ]] || fail "the engine knows no proxy"
  pulled=$(blob_gets "$scratch/hub")
  typed_inline 'docker pull alpine' >/dev/null
  [ "$(blob_gets "$scratch/hub")" = "$pulled" ] || fail "docker's pull went past the cache"
}

see() {
  local stored said
  curl --silent 127.0.0.1:17081/api/cache/stats | jq --exit-status '.hits >= 2' >/dev/null ||
    fail "the second pull brought no hits"
  stored=$(curl --silent 127.0.0.1:17081/api/cache/entries | jq --raw-output '.entries[0].key')
  said=$(typed see "s/sha256:HEX/$stored/")
  [[ $said == *'"status"'*'"hits"'*'"removed"'* ]] || fail "see: $said"
}

images() {
  local said
  said=$(typed images)
  [[ $said == *ghcr.io/org/app*'"dry_run"'* ]] || fail "images: $said"
  [[ $(curl --silent 127.0.0.1:17081/api/cache/pins) == *alpine:3.20* ]] || fail "nothing is pinned"
}

command_line() {
  local said
  said=$(typed command)
  [[ $said == *'hit rate'*ghcr.io/org/app:1.2*'would remove'*alpine:3.20* ]] || fail "command: $said"
  [[ $(typed_inline 'discobot-proxy pin --list') == *alpine:3.20* ]] || fail "no pin is listed"
  typed_inline 'discobot-proxy pin --remove alpine:3.20' >/dev/null
  [[ $(typed_inline 'discobot-proxy pin --list') != *alpine:3.20* ]] || fail "the pin is still there"
  # A second table, and its reader is gone.
  said=$(typed_inline 'discobot-proxy stats --watch 10' 's/10$/1 | sed 14q/')
  [ "$(grep --count 'hit rate' <<<"$said")" = 2 ] || fail "watched once: $said"
}

# What the sentences name beside: a look at the host, and load.
host() {
  local said
  said=$(typed_inline 'discobot-proxy check')
  [[ $said == *"$scratch/hub/ca.crt"* ]] || fail "check: $said"
  said=$(typed_inline 'ss -ltnp')
  [[ $said == *:17080*discobot-proxy* ]] || fail "ss: $said"
  said=$(profile=dev typed_inline 'scripts/load.sh URL' \
    "s#scripts#$here#; s#URL#http://PROXY:17080/ca.crt --requests 100#")
  [[ $said == *requests/s* && $said == *' 0      0' ]] || fail "load: $said"
}

# The users' file and then the configuration that names it, which the proxy reads while it runs.
users() {
  local said
  # Without a terminal the password is read from the standard input, twice.
  typed users "s/PID/$proxy/" <<<$'secret\nsecret'
  configure 'proxy: {users: /etc/discobot/users}'
  said=$(typed live "s/PID/$proxy/")
  [[ $said == *'"changed":["logging.level"]'* ]] || fail "live: $said"
  [ "$(connects ann:secret@)" = 200 ] || fail "ann may not come"
  [ "$(connects '')" = 407 ] || fail "anybody may come"
}

# connects USER@: the status of a CONNECT.
connects() {
  curl --silent --output /dev/null --write-out '%{http_connect}' --proxy "http://$1PROXY:17080" \
    "https://$GHCR/v2/" || true
}

logs() {
  trap - EXIT
  [ "$1" -eq 0 ] || tail -n 20 "$scratch/proxy.log" "$scratch/host.log" >&2 || true
  exit "$1"
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
else
  main "$@"
fi
