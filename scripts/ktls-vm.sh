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

suites=(ktls epoll)
limit=600 # seconds that a machine may run

main() {
  local kernels kernel cache
  kernels=("${@:-6.12}")
  "$here/setup-tests.sh"
  cd "$here/.."
  cache=$(cache_dir)
  mkdir -p "$cache"
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-ktls.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  build
  for kernel in "${kernels[@]}"; do
    (
      flock 9
      [ -d "$cache/kernel-$kernel" ] || unpack_kernel "$kernel" "$cache/kernel-$kernel" 9>&-
    ) 9>"$cache/kernel-$kernel.lock"
    initrd "$cache/kernel-$kernel"
    boot "$cache/kernel-$kernel"
    printf 'ktls-vm.sh: passed on %s\n' "$kernel"
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

# unpack_kernel SERIES DIR: the newest "cloud" kernel of a series, whole or not at all.
unpack_kernel() {
  local pattern image packages deb
  pattern="^linux-image-${1//./\\.}\\..*-cloud-amd64\$"
  image=$(newest "$pattern")
  [ -n "$image" ] || { apt-get update -qq && image=$(newest "$pattern"); }
  [ -n "$image" ] || fail "apt knows no kernel $1"
  # Newer packages leave the modules to others.
  packages=$(apt-cache depends "$image" |
    awk '$1 == "Depends:" && $2 ~ /^linux-(binary|modules)-/ { print $2 }')
  rm -rf "$2.part"
  mkdir "$2.part"
  cd "$2.part"
  # shellcheck disable=SC2086
  apt-get -o APT::Sandbox::User=root download -qq $image $packages >/dev/null
  for deb in ./*.deb; do
    dpkg-deb -x "$deb" .
    rm "$deb"
  done
  [ -d lib/modules ] || ln -s usr/lib lib
  depmod -b . "$(ls lib/modules)"
  mv "$2.part" "$2"
}

newest() {
  apt-cache search --names-only "$1" | awk '$1 !~ /unsigned/ { print $1 }' | sort -V | tail -n 1
}

# initrd KERNEL_DIR: a system that has the tests for its only job.
initrd() {
  local root=$scratch/root release module program
  release=$(ls "$1/lib/modules")
  rm -rf "$root"
  mkdir -p "$root"/{bin,dev,etc,lib,mods,proc,root,run,scratch,sys,tmp,var/tmp}
  cp "$(command -v busybox)" "$root/bin/busybox"
  for module in tls aesni-intel ghash-clmulni-intel gcm chacha20poly1305 crypto-chacha20 crypto-poly1305; do
    # What is built in, or has another name in another series, is no fault: the tests would tell.
    modprobe -d "$1" -S "$release" --show-depends "$module" 2>/dev/null || true
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
    local name=$(($(ls "$root/mods" | wc -l) + 100)).ko
    case $module in
      *.xz) xz -dc "$module" >"$root/mods/$name" ;;
      *) cp "$module" "$root/mods/$name" ;;
    esac
  done
  while read -r program; do
    # At the paths where they were built: the tests look for the program there.
    mkdir -p "$root$(dirname "$program")"
    objcopy --strip-debug "$program" "$root$program"
    ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
      [ -e "$root$library" ] || { mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"; }
    done
  done <"$scratch/programs"
  printf 'root:x:0:0::/root:/bin/sh\n' >"$root/etc/passwd"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
  printf 'hosts: files\n' >"$root/etc/nsswitch.conf"
  init >"$root/init"
  job >"$root/job"
  chmod +x "$root/init"
  (cd "$root" && find . -print0 | cpio --null --create --format=newc --quiet | gzip -1 >"$scratch/initrd")
}

init() {
  cat <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
# Not over /tmp: the tests may have been built below it.
mount -t tmpfs -o size=60% tmp /scratch
export TMPDIR=/scratch
ln -s /proc/self/fd /dev/fd
ip link set lo up
ulimit -n 65536
for module in /mods/*; do insmod "$module" || echo "no $module"; done
echo "kernel $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s"
sh /job </dev/null
echo "job ended: $?"
poweroff -f
INIT
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

# boot KERNEL_DIR: emulated, since the hosts that CI has for this offer nothing else.
boot() {
  local release image
  release=$(ls "$1/lib/modules")
  image=$1/boot/vmlinuz-$release
  [ -e "$image" ] || image=$1/lib/modules/$release/vmlinuz
  timeout "$limit" qemu-system-x86_64 -machine pc,accel=tcg -cpu max -smp 2 -m 2048 -nodefaults \
    -no-reboot -display none -serial stdio -kernel "$image" -initrd "$scratch/initrd" \
    -append 'console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off' \
    </dev/null 2>"$scratch/qemu.log" | sed -u 's/\r//g' | tee "$scratch/console" || {
    cat "$scratch/qemu.log" >&2
    fail "the machine did not end by itself within $limit s"
  }
  grep -qx 'job ended: 0' "$scratch/console" || fail "failed on kernel $release"
}

main "$@"
