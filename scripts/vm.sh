# shellcheck shell=bash
# Sourced: a small machine of its own with a Debian kernel, for what this machine's kernel lacks or its
# limits forbid. Nothing of the kernels is installed: they are kept, unpacked, in the tests' cache.

: "${scratch:=}" # set by whoever sources this

limit=600 # seconds that a machine may run

# kernel SERIES: the folder it is unpacked in, which is made where it is not there yet.
kernel() {
  local cache
  cache=$(cache_dir)
  mkdir -p "$cache"
  (
    flock 9
    [ -d "$cache/kernel-$1" ] || unpack_kernel "$1" "$cache/kernel-$1" 9>&- >&2
  ) 9>"$cache/kernel-$1.lock"
  printf '%s\n' "$cache/kernel-$1"
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

# initrd KERNEL_DIR: a system whose only job is $scratch/job, with the programs of $scratch/programs, and
# $scratch/files, where they are, as /files.
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
  [ ! -d "$scratch/files" ] || cp -r "$scratch/files" "$root/files"
  printf 'root:x:0:0::/root:/bin/sh\n' >"$root/etc/passwd"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
  printf 'hosts: files\n' >"$root/etc/nsswitch.conf"
  init >"$root/init"
  cp "$scratch/job" "$root/job"
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
ulimit -n 100000
for module in /mods/*; do insmod "$module" || echo "no $module"; done
echo "kernel $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s"
sh /job </dev/null
echo "job ended: $?"
poweroff -f
INIT
}

# boot KERNEL_DIR: emulated, since the hosts that CI has for this offer nothing else. Leaves what was printed
# in $scratch/console.
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
