#!/usr/bin/env bash
# bench.sh [--short] [--rounds N] [--seconds N] [--only REGEX] [--servers "NAME..."]: the proxy beside
# nginx, Squid, ATS and the floor, by turns on the same blobs, the server on core 0 and the load on core
# 1. Prints one Markdown table of medians with what is to be reached, and writes it with every run's
# figures below bench-results/. Five rounds, as it does by itself, take less than half an hour.
#
# --short: one round of small bodies with the debug build; looks for errors and wrong bytes and never
# at time (CI).
# --only 'big|small': rows whose names match. --seconds: of each row of hits.
# Servers: floor direct (upstream itself) proxy nginx squid ats haproxy (which only relays), and the proxy
# otherwise: logged (each hit), two (workers), entries (a million). Debian has the peers; of what is not
# installed the table has no column. Squid and ATS, slow ones, have every other round; what takes long
# and hardly differs (connections at rest, a million entries, a thousand clients) is done once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/bench/build.sh
. "$here/bench/build.sh"
# shellcheck source=scripts/bench/servers.sh
. "$here/bench/servers.sh"
# shellcheck source=scripts/bench/rows.sh
. "$here/bench/rows.sh"

rounds=5 seconds=2 short=no profile=release only=.
servers="floor direct proxy nginx squid ats haproxy logged two entries"

main() {
  while [ $# -gt 0 ]; do
    case $1 in
      --short) short=yes rounds=1 ;;
      --rounds) rounds=$2 && shift ;;
      --seconds) seconds=$2 && shift ;;
      --only) only=$2 && shift ;;
      --servers) servers=$2 && shift ;;
      *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
    shift
  done
  big=1000000000 medium=100000000 idle=2000 entries=1000000
  if [ "$short" = yes ]; then
    # The tests have built it.
    big=4000000 medium=2000000 idle=50 entries=1000 profile=dev seconds=1
  fi
  { read -r PROXY && read -r LOAD && read -r FLOOR; } < <(built discobot-proxy load floor)
  results=$here/../bench-results/$(date -u +%Y%m%d-%H%M%S)
  mkdir -p "$results"
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-bench.XXXXXX")
  running=()
  trap finish EXIT
  trap 'exit 1' INT TERM

  certificates
  blobs
  start_origin
  wrong=0
  local server round
  for round in $(seq "$rounds"); do
    for server in $servers; do
      if ! "has_$server"; then
        [ "$round" != 1 ] || echo "bench.sh: $server is not installed" >&2
        continue
      fi
      case $server in squid | ats) [ $((round % 2)) = 1 ] || continue ;; esac
      rows "$server" "$round"
    done
  done
  report | tee "$results/table.md"
  if [ "$wrong" -gt 0 ]; then
    fail "$wrong runs had errors or wrong bytes"
  fi
}

# The same addresses for all of them: upstream is 127.0.0.2, and 127.0.0.4 where it is not to be cached;
# what is measured is 127.0.0.3.
certificates() {
  local dir=$scratch/tls
  mkdir "$dir"
  authority "$dir" "bench CA"
  server_certificate "$dir" bench.test \
    'DNS:bench.test,IP:127.0.0.2,IP:127.0.0.3,IP:127.0.0.4'
}

# blob FOLDER BYTES: a file of that size, named by its digest; prints its path in the URL.
blob() {
  local dir=$scratch/www/v2/bench/$1 hex
  mkdir -p "$dir"
  # Of no pattern, at the speed of AES.
  openssl enc -aes-128-ctr -pass "pass:$1 $2" -nosalt -in /dev/zero 2>/dev/null |
    head -c "$2" >"$dir/part" || true
  hex=$(sha256sum "$dir/part" | cut -d ' ' -f 1)
  mv "$dir/part" "$dir/sha256:$hex"
  printf '/v2/bench/%s/sha256:%s\n' "$1" "$hex"
}

blobs() {
  BIG=$(blob blobs "$big")
  # Of lengths of their own, or they were one.
  CROWDS=("$(blob blobs "$medium")" "$(blob blobs $((medium + 1)))" "$(blob blobs $((medium + 2)))")
  SMALL=$(blob manifests 1024)
  PIECE=$(blob pieces 262144)
  # The files are read by users of the servers' own.
  chmod -R a+rX "$scratch"
}

report() {
  printf '# discobot-proxy %s\n\n' "$(cd "$here/.." && git describe --always --dirty)"
  # shellcheck disable=SC2016 # the backquotes are Markdown
  printf '%s, %s of %s cores used, kernel %s, %s. %s round(s) of %s s, medians; `short`: %s.\n\n' \
    "$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)" "$(($(nproc) > 1 ? 2 : 1))" \
    "$(nproc)" "$(uname -r)" "$(date -u +%F)" "$rounds" "$seconds" "$short"
  python3 "$here/bench/table.py" "$results"
}

finish() {
  local status=$?
  trap - EXIT
  if [ "$status" -ne 0 ]; then
    tail -n 5 "$scratch"/*.log >&2 || true
  fi
  stop_server
  stop_origin
  rm -rf "$scratch"
  exit "$status"
}

main "$@"
