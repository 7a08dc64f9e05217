#!/usr/bin/env bash
# idle-vm.sh [CONNECTIONS]: what so many connections at rest (20,000 where no number is given) cost the proxy, plain
# and with TLS. In a small machine of its own, where the limit of open files may be raised: the proxy wants four
# for each connection. A run fails that does not hold them all. The machine is emulated, which says nothing of
# speed; it takes some minutes.
#
# Prints a line for each and leaves bench-results/idle-vm.txt. Kernels as for ktls-vm.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"
# shellcheck source=scripts/bench/build.sh
. "$here/bench/build.sh"
# shellcheck source=scripts/vm.sh
. "$here/vm.sh"

main() {
  local connections=${1:-20000} dir
  "$here/setup-tests.sh"
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-idle.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  built discobot-proxy load floor | xargs realpath >"$scratch/programs"
  mkdir -p "$scratch/files/www/v2/idle/blobs"
  authority "$scratch/files" "idle CA"
  server_certificate "$scratch/files" idle.test 'IP:127.0.0.2'
  head -c 1024 /dev/urandom >"$scratch/blob"
  digest=sha256:$(sha256sum "$scratch/blob" | cut -d ' ' -f 1)
  mv "$scratch/blob" "$scratch/files/www/v2/idle/blobs/$digest"
  job "$connections" >"$scratch/job"
  dir=$(kernel 6.12)
  initrd "$dir"
  # Half of the emulated time are handshakes.
  limit=1800
  boot "$dir"
  mkdir -p "$here/../bench-results"
  grep ' connections held, ' "$scratch/console" | tee "$here/../bench-results/idle-vm.txt"
}

# What runs inside.
job() {
  local proxy load floor path=/v2/idle/blobs/$digest
  { read -r proxy && read -r load && read -r floor; } <"$scratch/programs"
  cat <<JOB
ip addr add 127.0.0.2/8 dev lo 2>/dev/null
echo '15000 64999' >/proc/sys/net/ipv4/ip_local_port_range
cd /scratch
$floor /files/www 127.0.0.2:8080 &
$floor /files/www 127.0.0.2:8443 /files/srv.crt /files/srv.key &
cat >config.yaml <<CONFIG
proxy: {workers: 1, deny_destinations: []}
tls: {intercept: ["127.0.0.2"], upstream_ca: [/files/ca.crt]}
cache: {access: trust, min_free: 0}
limits: {max_connections: 21000, max_connections_per_client: 21000}
logging: {level: warn}
CONFIG
$proxy --config config.yaml &
proxy=\$!
for try in 1 2 3 4 5 6 7 8 9; do sleep 1; [ ! -e certs/ca.crt ] || break; done
sleep 1
status=0
ask() {
  echo "== \$1"
  shift
  $load --proxy 127.0.0.1:17080 --ca certs/ca.crt --pid \$proxy --idle -c $1 "\$@" || status=1
}
ask plain http://127.0.0.2:8080$path
ask TLS https://127.0.0.2:8443$path
exit \$status
JOB
}

main "$@"
