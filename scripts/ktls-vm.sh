#!/usr/bin/env bash
# ktls-vm.sh [KERNEL...]: the tests of TLS in the kernel (tests/ktls.rs and the unit tests below it)
# against the real binary on Debian kernels, in a small emulated machine: few hosts have kernel TLS.
# 6.12 where none is named; Debian 12 has 6.1, too. The kernel must have counted sessions of its own
# (/proc/net/tls_stat), or nothing was shown. Then the proxy starts where that kernel's
# kernel.io_uring_disabled is 2, which no test can set for a whole machine elsewhere.
#
# Nothing of the kernels is installed. They are kept, unpacked, in
# ${DISCOBOT_TEST_CACHE:-${XDG_CACHE_HOME:-~/.cache}/discobot-proxy}. Emulation says nothing of speed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"
# shellcheck source=scripts/vm.sh
. "$here/vm.sh"

suites=(ktls epoll)

main() {
  local kernels series dir
  kernels=("${@:-6.12}")
  "$here/setup-tests.sh"
  cd "$here/.."
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-ktls.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  build
  job >"$scratch/job"
  for series in "${kernels[@]}"; do
    dir=$(kernel "$series")
    initrd "$dir"
    boot "$dir"
    printf 'ktls-vm.sh: passed on %s\n' "$series"
  done
}

# The tests and the program they start, with the libraries of both.
build() {
  local suite args=()
  for suite in "${suites[@]}"; do
    args+=(--test "$suite")
  done
  cargo test --locked --quiet --no-run --lib "${args[@]}" --message-format json >"$scratch/build"
  grep -o '"executable":"[^"]*"' "$scratch/build" | cut -d'"' -f4 | sort -u >"$scratch/programs"
  [ "$(wc -l <"$scratch/programs")" -ge $((${#suites[@]} + 2)) ] || fail "cargo built too little"
}

# What runs inside.
job() {
  local program
  echo 'export DISCOBOT_KTLS=1; status=0'
  while read -r program; do
    case $program in
      */discobot-proxy) ;;
      */epoll-*)
        # A kernel that forbids io_uring to all; those before 6.6 can't.
        printf 'if echo 2 >/proc/sys/kernel/io_uring_disabled; then\n'
        printf '%q --exact the_start_up_line_and_health_say_which_driver_runs || status=1\n' "$program"
        printf 'echo 0 >/proc/sys/kernel/io_uring_disabled\nfi\n'
        ;;
      */discobot_proxy-*) printf '%q sys::ktls net::ktls || status=1\n' "$program" ;;
      *) printf '%q --test-threads 2 || status=1\n' "$program" ;;
    esac
  done <"$scratch/programs"
  cat <<'JOB'
cat /proc/net/tls_stat
for name in TlsTxSw TlsRxSw; do
  [ "$(awk -v name=$name '$1 == name { print $2 }' /proc/net/tls_stat)" -gt 0 ] || status=1
done
exit $status
JOB
}

main "$@"
