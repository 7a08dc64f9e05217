#!/usr/bin/env bash
# e2e-container.sh: contrib/Containerfile, built and run by the commands of docs/CONTAINER.md in a machine of
# its own with systemd, with podman. The container is read-only, without a privilege, as another user; it is
# healthy, skopeo pulls an image through it twice, and it ends with 0. The engine's own seccomp profile
# leaves it epoll, the one of the document io_uring; the cache and the CA outlive the container.
#
# No registry of images is reached: the base image is a Debian with a compiler, kept in
# ${DISCOBOT_TEST_CACHE:-${XDG_CACHE_HOME:-~/.cache}/discobot-proxy}, where this machine's Rust is mounted,
# and the program is the debug build. Not shown here: the build on the Rust image that the file names, Docker
# and its profile, control groups (crun would raise a limit), and, where none can be raised, the limits
# of the document. Root, cgroup v2.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"
# shellcheck source=scripts/machine.sh
. "$here/machine.sh"
# shellcheck source=scripts/registry.sh
. "$here/registry.sh"
# shellcheck source=scripts/blocks.sh
. "$here/blocks.sh"

REGISTRY=registry.e2e.test
ADDRESS=10.78.0.4
IMAGE=$REGISTRY/lab/debian:v1
DOCUMENT=$here/../docs/CONTAINER.md

main() {
  local suite base layout target cargo lines
  "$here/setup-tests.sh"
  suite=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
  base=$(cache_dir)/$suite-build
  mkdir -p "$(cache_dir)"
  (
    flock 9
    [ -d "$base" ] || base_system "$suite" "$base" ca-certificates,gcc,libc6-dev 9>&-
  ) 9>"$base.lock"
  layout=$("$here/debian-image.sh")
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-container.XXXXXX")
  trap 'machine_finish "$scratch/systemd.log" "$scratch/podman.log"' EXIT
  trap 'exit 1' INT TERM
  target=$(realpath "${CARGO_TARGET_DIR:-$here/../target}")
  cargo=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
  wrapper "$target" >"$scratch/podman"
  if ! machine_start "$scratch" "$scratch" "$target"; then
    echo "e2e-container.sh: NOT CHECKED: no cgroup v2 that can be written to" >&2
    return 0
  fi
  registry_start "$scratch/registry" "$REGISTRY" "$ADDRESS" nsenter -t "$init" --net
  registry_fill "$layout" "$IMAGE" there
  import "$base"
  mapfile -t lines < <(blocks "$DOCUMENT" container)
  [ "${#lines[@]}" -eq 3 ] || fail "CONTAINER.md has ${#lines[@]} blocks: this knows what follows three"
  type_block "${lines[0]}"
  image
  type_block "${lines[1]}"
  runs epoll
  pulls first
  type_block "${lines[2]}"
  runs io_uring
  pulls again
  ends
  echo "e2e-container.sh: all well"
}

# The first process of the namespaces: makes a machine of this one's files.
inside() {
  local scratch=$1 target=$2 root=$1/root checkout
  machine_root / "$scratch"
  ip addr add "$ADDRESS/32" dev lo
  # What this machine starts stays here.
  rm -rf "$root/etc/systemd/system"
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$scratch/containers"
  # podman's own overlays want an ordinary file system below them; cargo goes on where it is.
  checkout=$(realpath "$here/..")
  for dir in "$target" "$scratch/containers:/var/lib/containers"; do
    mkdir -p "$root${dir#*:}"
    mount --bind "${dir%%:*}" "$root${dir#*:}"
  done
  mkdir -p "$root/run/checkout" "$root/run/bin"
  cp -r "$checkout"/{Cargo.toml,Cargo.lock,src,benches,contrib} "$root/run/checkout/"
  printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$REGISTRY" >"$root/etc/hosts"
  install -m 755 "$scratch/podman" "$root/run/bin/podman"
  machine_boot "$root"
}

# podman, as the document's commands find it: what depends on this machine goes in here, not there.
wrapper() {
  local sysroot
  sysroot=$(rustc --print sysroot)
  cat <<SH
#!/bin/bash
case \$1 in
  build)
    shift
    # Another name of the same: podman's is buildah inside.
    exec /usr/bin/buildah build --isolation chroot --build-arg BASE=localhost/base --build-arg PROFILE=dev \\
      --volume $sysroot:/usr/local:ro --volume $cargo:$cargo --volume $1:$1 \
      "\$@" ;;
  run)
    # The registry of the test is none of the public ones.
    shift
    # The limits of the document and of podman, or what may be had where none can be raised.
    (ulimit -n 131072) 2>/dev/null ||
      set -- --ulimit "nproc=\$(ulimit -Hu)" "\${@/131072:131072/\$(ulimit -Hn)}"
    # For groups of its own crun raises a limit as well.
    set -- run --cgroups disabled --volume /run/config.yaml:/etc/discobot-proxy/config.yaml:ro \\
      --volume /run/registry-ca.crt:/run/ca.crt:ro "\$@" ;;
esac
exec /usr/bin/podman --runtime crun "\$@"
SH
}

# import BASE: as the image that the container is built on; and what the container reads.
import() {
  tar -C "$1" -c . | there podman import --quiet --change ENV=CARGO_NET_OFFLINE=true \
    --change "ENV=CARGO_TARGET_DIR=$target" --change "ENV=CARGO_HOME=$cargo" - localhost/base \
    >>"$scratch/podman.log" 2>&1 ||
    fail "the base image can't be imported"
  there tee /run/registry-ca.crt <"$scratch/registry/ca.crt" >/dev/null
  {
    cat "$here/../contrib/config.yaml"
    echo 'proxy: {deny_destinations: []}'
  } | sed "s#^tls:#&\\n  intercept: [$REGISTRY]\\n  upstream_ca: [/run/ca.crt]#" |
    there tee /run/config.yaml >/dev/null
}

# type_block LINE: the commands of that block, in the checkout.
type_block() {
  local commands
  commands=$(block "$DOCUMENT" "$1")
  there env HOME=/root PATH="/run/bin:$PATH" timeout 120 \
    bash -euc "cd /run/checkout
$commands" >>"$scratch/podman.log" 2>&1 || fail "CONTAINER.md:$1: its commands fail"
}

# What is in it, and what is not.
image() {
  local files
  podman_says create --name listed discobot-proxy >/dev/null || fail "there is no image"
  files=$(podman_says export listed | tar -t)
  grep -qx 'usr/bin/discobot-proxy' <<<"$files" || fail "the program is not in it: $files"
  ! grep -qE '(^|/)(sh|bash|apt|cargo)$' <<<"$files" || fail "more than the program is in it: $files"
  [ "$(in_image '{{.Config.User}} {{.Config.StopSignal}}')" = '65532:65532 SIGTERM' ] ||
    fail "it has another user or signal"
}

in_image() {
  podman_says image inspect --format "$1" discobot-proxy
}

# runs DRIVER: the container is up, as the document promises, on this driver.
runs() {
  local pid status line said
  await "$shell" 'the container is healthy' podman_says healthcheck run discobot-proxy
  said=$(there curl --silent --fail http://127.0.0.1:17081/health)
  [[ $said == *"\"$1\""* ]] || fail "not on $1: $said"
  pid=$(podman_says inspect --format '{{.State.Pid}}' discobot-proxy)
  status=$(there cat "/proc/$pid/status")
  for line in Uid:65532655326553265532 CapEff:0000000000000000 CapBnd:0000000000000000 \
    NoNewPrivs:1 Seccomp:2; do
    grep -qxF "$line" <<<"${status//[[:blank:]]/}" || fail "its status is not $line"
  done
  there awk '$2 == "/" && $4 ~ /(^|,)ro(,|$)/ { found = 1 } END { exit !found }' \
    "/proc/$pid/mounts" || fail "its root can be written to"
}

podman_says() {
  there env HOME=/root podman --runtime crun "$@"
}

# pulls first|again: an image, through it, by a client that trusts its CA alone.
pulls() {
  local before=$fetched
  there env HTTPS_PROXY=http://127.0.0.1:17080 SSL_CERT_FILE=/run/checkout/ca.crt \
    skopeo --insecure-policy copy --quiet "docker://$IMAGE" "dir:/run/pulled-$1" ||
    fail "the $1 pull failed"
  fetched=$(blob_gets "$scratch/registry")
  if [ "$1" = first ]; then
    [ "$fetched" -ge 4 ] || fail "the registry was asked for $fetched blobs"
  else
    [ "$fetched" -eq "$before" ] || fail "the cache did not outlive its container"
  fi
}

ends() {
  podman_says stop discobot-proxy >/dev/null
  [ "$(podman_says wait discobot-proxy)" = 0 ] || fail "it does not end with 0"
}

fetched=0
if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
else
  main "$@"
fi
