# shellcheck shell=bash
# Sourced: a machine of its own whose systemd a test drives, made of namespaces and a root that lies over
# another. What sources this answers --inside by making the root and calling machine_boot.

# machine_start SCRATCH ARGUMENTS...: runs this script with --inside ARGUMENTS as the first process of
# new namespaces, and waits until systemd is up. Sets shell, group and init. Fails where there is no
# cgroup v2 that can be written to.
machine_start() {
  local scratch=$1 groups
  shift
  # systemd sorts its processes into groups: below one of ours, which it takes for the first of all.
  groups=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)
  group=$groups$(sed -n 's/^0:://p' /proc/self/cgroup)/discobot-$$
  if [ -z "$groups" ] || ! mkdir "$group" 2>/dev/null; then
    group=
    return 1
  fi
  (
    echo "$BASHPID" >"$group/cgroup.procs"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
      unshare --net --mount --pid --cgroup --uts --ipc --fork --kill-child --mount-proc \
      "$0" --inside "$@"
  ) >"$scratch/systemd.log" 2>&1 &
  shell=$!
  await "$shell" 'systemd starts' booted
}

# machine_root BELOW SCRATCH: the machine's root, SCRATCH/root, over BELOW, which is not changed.
machine_root() {
  local below=$1 scratch=$2 root=$2/root dir node
  mount --make-rprivate /
  ip link set lo up
  mkdir "$root" "$scratch/files"
  mount -t tmpfs tmpfs "$scratch/files"
  mkdir "$scratch/files/upper" "$scratch/files/work"
  mount -t overlay overlay \
    -o "lowerdir=$below,upperdir=$scratch/files/upper,workdir=$scratch/files/work" "$root"
  mount -t proc proc "$root/proc"
  # Read-only it is a container's, where systemd starts nothing for devices.
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  for dir in run tmp dev; do
    mount -t tmpfs -o mode=755 tmpfs "$root/$dir"
  done
  for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
  done
  mkdir "$root/dev/pts" "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
  mount -t tmpfs tmpfs "$root/dev/shm"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
}

# machine_boot ROOT: becomes its systemd.
machine_boot() {
  cd "$1"
  mkdir -p old
  pivot_root . old
  umount -l /old
  # No new root by chroot: below one, no user namespace can be made (PrivateUsers=).
  exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
    --unit=basic.target --log-target=console --show-status=no
}

booted() {
  local unshare
  unshare=$(cat "/proc/$shell/task/$shell/children") && init=${unshare%% *}
  [ -n "$init" ] && [ "$(cat "/proc/$init/comm")" = systemd ] &&
    there systemctl is-active basic.target
}

# there COMMAND...: on that machine.
there() {
  nsenter -t "$init" --net --mount --pid --cgroup --uts --ipc "$@"
}

# machine_finish LOG...: ends this script, and the machine with all its processes; for a trap on EXIT.
# Where the script failed, the ends of the logs and the state of the service are shown first.
machine_finish() {
  local status=$?
  trap - EXIT
  if [ "$status" -ne 0 ]; then
    tail -n 30 "$@" >&2 || true
    [ -z "${init:-}" ] || there systemctl status --no-pager --full discobot-proxy >&2 || true
  fi
  # What a script has started in its network alone.
  if [ -n "${registry:-}" ]; then
    kill "$registry" 2>/dev/null || true
    wait "$registry" 2>/dev/null || true
  fi
  if [ -n "${shell:-}" ]; then
    # The namespaces' first process, and with it all others.
    kill -KILL "$shell" 2>/dev/null || true
    wait "$shell" 2>/dev/null || true
  fi
  if [ -n "${group:-}" ]; then
    # A group is busy until its last process is gone for good.
    for _ in $(seq 50); do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.1
    done
  fi
  # Ours, of every script that sources this.
  # shellcheck disable=SC2154
  rm -rf --one-file-system "$scratch"
  exit "$status"
}
