#!/usr/bin/env bash
# e2e-service.sh [BINARY]: contrib/discobot-proxy.service, installed by the very steps of README.md
# and run by this machine's systemd, which is started in namespaces of its own. The unit verifies,
# systemd finds it little exposed, and its sandboxing leaves the proxy what it needs: to start, to
# look a name up, a miss, a hit, to reopen its log, to be started again, to stop. Restarts lose no
# connection; a proxy that hangs is started anew.
#
# BINARY is target/release/discobot-proxy where none is named, built first. Root, cgroup v2.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/blocks.sh
. "$here/blocks.sh"
# shellcheck source=scripts/machine.sh
. "$here/machine.sh"

REGISTRY=registry.e2e.test
ADDRESS=10.78.0.3
# What `systemd-analyze security` may say at most; SECURITY.md names the figure.
EXPOSURE_MAX=1.1

main() {
  local binary
  "$here/setup-tests.sh"
  binary=$(binary_of "${1:-}")
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-service.XXXXXX")
  trap 'machine_finish "$scratch/systemd.log"' EXIT
  trap 'exit 1' INT TERM

  if ! machine_start "$scratch" "$binary" "$scratch"; then
    echo "e2e-service.sh: NOT CHECKED: no cgroup v2 that can be written to" >&2
    return 0
  fi
  start
  serve
  command
  restarts
  hangs
  privileged
  end
  echo "e2e-service.sh: all well"
}

# The first process of the namespaces: makes a machine of this one's files.
inside() {
  local binary=$1 scratch=$2 root=$2/root
  machine_root / "$scratch"
  ip addr add "$ADDRESS/32" dev lo
  # What this machine starts stays here.
  rm -rf "$root/etc/systemd/system" "$root/etc/discobot-proxy"
  rm -rf "$root/var/lib/discobot-proxy" "$root/var/cache/discobot-proxy"
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants"

  install -D "$binary" "$root/run/build/target/release/discobot-proxy"
  cp -r "$here/../contrib" "$root/run/build/"
  printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$REGISTRY" >"$root/etc/hosts"
  machine_boot "$root"
}

# As README.md says.
start() {
  local steps
  steps=$(block_of "$here/../README.md" service)
  there sh -euc "cd /run/build
$steps" 2>/dev/null
  local complaints
  complaints=$(there systemd-analyze verify /etc/systemd/system/discobot-proxy.{service,socket} 2>&1) &&
    [ -z "$complaints" ] || fail "systemd-analyze verify: $complaints"

  local exposure
  exposure=$(there systemd-analyze security --no-pager discobot-proxy |
    sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')
  echo "exposure: $exposure"
  awk -v is="$exposure" -v max="$EXPOSURE_MAX" 'BEGIN { exit is == "" || is > max }' ||
    fail "an exposure of '$exposure', more than $EXPOSURE_MAX"
  await "$shell" 'the proxy starts' healthy
}

# Under all restrictions, and as though there were none.
serve() {
  local pid status body
  pid=$(there systemctl show --property MainPID --value discobot-proxy)
  status=$(there cat "/proc/$pid/status")
  for line in CapPrm:0000000000000000 CapEff:0000000000000000 CapBnd:0000000000000000 \
    NoNewPrivs:1 Seccomp:2; do
    grep -qxF "$line" <<<"${status//[[:blank:]]/}" || fail "its status is not $line"
  done
  [ "$(awk '/^Uid:/ { print $2 }' <<<"$status")" = "$(there id -u discobot-proxy)" ] ||
    fail "it runs as another user"
  for file in /etc/passwd /usr/local/bin/discobot-proxy /etc/discobot-proxy/config.yaml; do
    ! there nsenter -t "$pid" --mount test -w "$file" || fail "$file can be written to"
  done

  body=$scratch/body
  head -c 3000000 /dev/urandom >"$body"
  path=/v2/lab/image/blobs/sha256:$(sha256sum "$body" | cut -d ' ' -f 1)
  there mkdir -p "/run/registry/${path%/*}"
  there tee "/run/registry$path" <"$body" >/dev/null
  there tee /run/nginx.conf >/dev/null <<CONFIG
pid /run/nginx.pid; error_log /run/nginx.log; events {}
http { access_log off; server { listen $ADDRESS:5000; root /run/registry; } }
CONFIG
  there nginx -c /run/nginx.conf
  pull "$path"
  ! grep -qi '^x-cache: hit' "$scratch/head" || fail "the first answer is a hit"
  pull "$path"
  grep -qi '^x-cache: hit' "$scratch/head" || fail "the second answer is no hit"
  # The driver it has where nothing is forbidden.
  there systemd-run --quiet --unit unbound --working-directory=/run --setenv=PROXY_PORT=17090 \
    --setenv=API_PORT=17091 /usr/local/bin/discobot-proxy
  await "$shell" 'an unbound proxy starts' there curl --silent --fail http://127.0.0.1:17091/health
  local unbound
  unbound=$(there curl --silent http://127.0.0.1:17091/health)
  there systemctl stop unbound
  [ "$(healthy)" = "$unbound" ] || fail "it is $(healthy), and without the unit $unbound"
}

pull() {
  there curl --silent --show-error --fail --proxy http://127.0.0.1:17080 --dump-header - \
    --output /run/got "http://$REGISTRY:5000$1" >"$scratch/head"
  there cat /run/got | cmp -s - "$scratch/body" || fail "other bytes came"
}

# As README.md has it.
command() {
  there runuser -u discobot-proxy -- discobot-proxy --config /etc/discobot-proxy/config.yaml ca |
    there cmp - /var/lib/discobot-proxy/certs/ca.crt || fail "the command shows another CA"
}

# New connections all the while, each of which must be answered.
restarts() {
  local round asking
  : >"$scratch/asked"
  there sh -euc "ask() {
    while [ ! -e /run/enough ]; do
      curl --silent --show-error --fail --max-time 30 --proxy http://127.0.0.1:17080 \
        --output /dev/null http://$REGISTRY:5000$path
      echo
    done
  }
  ask & one=\$!
  ask & two=\$!
  ask
  wait \$one
  wait \$two" >>"$scratch/asked" 2>&1 &
  asking=$!
  for round in 1 2 3 4 5; do
    more_answers "$asking"
    # systemd counts starts, and so many in a row are too many.
    there systemctl reset-failed discobot-proxy
    there systemctl restart discobot-proxy
  done
  more_answers "$asking"
  there systemctl reset-failed discobot-proxy
  there touch /run/enough
  wait "$asking" || fail "a connection was lost in a restart: $(tail -n 1 "$scratch/asked")"
}

# more_answers PID: some more than there are.
more_answers() {
  await "$1" 'answers come' answers "$(($(wc -l <"$scratch/asked") + 5))"
}

answers() {
  [ "$(wc -l <"$scratch/asked")" -ge "$1" ]
}

hangs() {
  local edit=/run/systemd/system/discobot-proxy.service.d/watchdog.conf pid
  there install -D -m 644 /dev/stdin "$edit" <<<$'[Service]\nWatchdogSec=1s\nTimeoutAbortSec=1s'
  there systemctl daemon-reload
  there systemctl restart discobot-proxy
  pid=$(there systemctl show --property MainPID --value discobot-proxy)
  # Several times the watchdog's patience.
  sleep 4
  [ "$(there systemctl show --property MainPID --value discobot-proxy)" = "$pid" ] ||
    fail "the watchdog ended a proxy that was well"
  there kill -STOP "$pid"
  await "$shell" 'a proxy that hangs is started again' started_again
  await "$shell" 'the proxy is back' healthy
  there rm "$edit"
  there systemctl daemon-reload
  there systemctl restart discobot-proxy
  there systemctl reset-failed discobot-proxy
}

# A port that takes a privilege is to be had for that one alone.
privileged() {
  local edit=/etc/systemd/system/discobot-proxy.service.d/override.conf
  there install -D /dev/stdin "$edit" <<'UNIT'
[Service]
Environment=PROXY_PORT=80
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
PrivateUsers=no
UNIT
  there systemctl daemon-reload
  # Or its port would be the service's.
  there systemctl stop discobot-proxy.socket discobot-proxy
  there systemctl start discobot-proxy
  await "$shell" 'the proxy listens on port 80' there curl --silent --fail http://127.0.0.1:80/
  there rm "$edit"
  there systemctl daemon-reload
  there systemctl stop discobot-proxy
  there systemctl start discobot-proxy.socket discobot-proxy
  await "$shell" 'the proxy is back' healthy
}

end() {
  there systemctl reload discobot-proxy
  await "$shell" 'the log is reopened' said 'log reopened'
  # What fails is started again; what was stored is there.
  there systemctl kill --signal KILL discobot-proxy
  await "$shell" 'the proxy is started again' started_again
  await "$shell" 'the proxy serves again' healthy
  there systemctl stop discobot-proxy.socket discobot-proxy
  [ "$(result)" = success,0 ] || fail "its end was $(result)"
  # A wrong configuration is not tried again and again.
  there systemctl reset-failed
  echo 'proxy: {prot: 1}' | there tee /etc/discobot-proxy/config.yaml >/dev/null
  there systemctl start discobot-proxy || true
  await "$shell" 'the wrong configuration is given up' gave_up
  said 'proxy.prot' >/dev/null || fail "nobody is told what is wrong"
}

healthy() {
  there curl --silent --fail http://127.0.0.1:17081/health
}

said() {
  there journalctl --quiet --no-pager --output cat --unit discobot-proxy | grep -F "$1"
}

started_again() {
  [ "$(there systemctl show --property NRestarts --value discobot-proxy)" = 1 ]
}

result() {
  there systemctl show --property Result --property ExecMainStatus --value discobot-proxy |
    paste -s -d , | sed 's/^\([0-9]*\),\(.*\)$/\2,\1/'
}

gave_up() {
  [ "$(result)" = exit-code,2 ] && [ "$(there systemctl is-active discobot-proxy)" = failed ]
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
else
  main "$@"
fi
