#!/usr/bin/env bash
# e2e-docker.sh [BINARY]: the Docker Engine, containerd and podman of Debian 13, pointed at the proxy by
# the lines that its own page shows and by nothing else, pull an image of a Debian base system from a
# real docker-registry; Docker removes it and pulls it again. Prints both times and the admin port's
# stats around them; fails unless every pull but the first came from the cache alone, and unless
# `--remove` leaves the clients' settings as they were.
#
# BINARY is target/release/discobot-proxy where none is named, built first. Root, Linux. All of it runs
# in namespaces of its own that have no way out. The clients' root file system (600 MB, a few minutes
# to make) and the image are kept in ${DISCOBOT_TEST_CACHE:-${XDG_CACHE_HOME:-~/.cache}/discobot-proxy}.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"
# shellcheck source=scripts/registry.sh
. "$here/registry.sh"

REGISTRY=registry.e2e.test
ADDRESS=10.78.0.2
IMAGE=$REGISTRY/lab/debian:v1

main() {
  local binary cache layout
  "$here/setup-tests.sh"
  binary=$(binary_of "${1:-}")
  cache=$(cache_dir)
  mkdir -p "$cache"
  (
    flock 9
    [ -d "$cache/trixie-clients" ] || base_system trixie "$cache/trixie-clients" \
      ca-certificates,containerd,curl,docker-cli,docker.io,iptables,podman 9>&-
  ) 9>"$cache/trixie-clients.lock"
  layout=$("$here/debian-image.sh")
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-e2e.XXXXXX")
  # A process namespace: whatever is started inside ends with its first process, this script's
  # second half. Mounts and addresses go with their namespaces.
  trap 'rm -rf "$scratch"' EXIT
  env -u SSL_CERT_FILE -u SSL_CERT_DIR -u HTTPS_PROXY -u HTTP_PROXY -u https_proxy -u http_proxy \
    unshare --net --mount --pid --fork --kill-child --mount-proc \
    "$0" --inside "$binary" "$cache/trixie-clients" "$layout" "$scratch"
}

inside() {
  local binary=$1 base=$2 layout=$3
  scratch=$4
  root=$scratch/root
  pids=()
  trap finish EXIT
  trap 'exit 1' INT TERM
  ip link set lo up
  ip addr add "$ADDRESS/32" dev lo
  printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$REGISTRY" >"$scratch/hosts"
  mount --bind "$scratch/hosts" /etc/hosts

  registry_start "$scratch/registry" "$REGISTRY" "$ADDRESS"
  pids+=("$registry")
  start_proxy "$binary"
  make_root "$base"
  settings >"$scratch/settings"
  start_engine
  registry_fill "$layout" "$IMAGE"

  printf '%s\n' "engine: $(in_root docker version --format '{{.Server.Version}}')"
  printf '%s\n' "stats before: $(stats)"
  timed_pull cold
  printf '%s\n' "stats between: $(stats)"
  local hits first
  hits=$(counter hits)
  first=$(fetched)
  in_root docker rmi "$IMAGE" >/dev/null
  timed_pull again
  printf '%s\n' "stats after: $(stats)"

  local blobs=4 # a configuration and three layers
  [ "$first" -ge "$blobs" ] || fail "the registry gave out only $first blobs on the cold pull"
  [ "$(counter hits)" -ge $((hits + blobs)) ] || fail "the second pull brought too few hits"
  [ "$(fetched)" -eq "$first" ] || fail "the second pull asked the registry for blobs"
  [ "$(in_root docker image inspect --format '{{.Id}}' "$IMAGE")" = "$(config_of "$layout")" ] ||
    fail "the image is another one"
  pull_by_containerd
  pull_by_podman
  [ "$(fetched)" -eq "$first" ] || fail "containerd or podman asked the registry for blobs"
  for client in podman containerd docker; do
    set_up "$client" --remove
  done
  settings | diff "$scratch/settings" - >&2 || fail "--remove left something behind"
  printf '%s\n' "e2e-docker.sh: $first blobs fetched by the first pull, none by the others"
}

start_proxy() {
  mkdir "$scratch/proxy"
  cat >"$scratch/proxy/config.yaml" <<CONFIG
tls: {cert_dir: $scratch/proxy/certs, intercept: [$REGISTRY], upstream_ca: [$scratch/registry/ca.crt]}
cache: {dir: $scratch/proxy/cache}
CONFIG
  "$1" --config "$scratch/proxy/config.yaml" >"$scratch/proxy.log" 2>&1 &
  pids+=($!)
  await $! "the proxy answers" stats
}

# The kept root stays as it is: this run's changes go to a layer above it.
make_root() {
  mkdir -p "$root" "$scratch/upper" "$scratch/work"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
  for dir in proc sys dev; do
    mount --rbind "/$dir" "$root/$dir"
  done
  # The clients' own overlays want an ordinary file system below them.
  for dir in docker containerd containers; do
    mkdir -p "$root/var/lib/$dir" "$scratch/lib/$dir"
    mount --bind "$scratch/lib/$dir" "$root/var/lib/$dir"
  done
  cp "$scratch/hosts" "$root/etc/hosts"
}

# set_up CLIENT [OPTION]: the line of the proxy's page, and again, which has to change nothing.
set_up() {
  local said line="curl -fsSL http://127.0.0.1:17080/setup/$1 | sh -s -- ${2:-}"
  in_root sh -c "$line" || fail "$line"
  said=$(in_root sh -c "$line")
  [[ $said == *"Nothing was to be done"* ]] || fail "twice: $line: $said"
}

# What the scripts may change, with its bytes.
settings() {
  (cd "$root" && find etc/ssl etc/docker etc/systemd etc/containers usr/local/share -type f \
    ! -path etc/docker/key.json -exec sha256sum {} + | sort)
  (cd "$root" && find etc/ssl etc/systemd -type l | sort)
}

start_engine() {
  set_up docker
  # Containers need not run here, so it is spared the host's packet filter.
  in_root dockerd --iptables=false --ip6tables=false --bridge=none >"$scratch/engine.log" 2>&1 &
  pids+=($!)
  await "${pids[-1]}" "the engine answers" in_root docker version
}

# The daemon itself pulls, as it does for Kubernetes, with the environment that systemd would give it.
pull_by_containerd() {
  local unit=etc/systemd/system/containerd.service.d/discobot-proxy.conf
  set_up containerd
  # Words of the line are variables.
  # shellcheck disable=SC2046
  in_root env $(sed -n 's/^Environment=//p' "$root/$unit") containerd >"$scratch/containerd.log" 2>&1 &
  pids+=($!)
  await $! "containerd answers" in_root ctr version
  in_root ctr image pull --local=false "$IMAGE" >/dev/null || fail "containerd's pull failed"
}

pull_by_podman() {
  set_up podman
  in_root podman pull --quiet "$IMAGE" >/dev/null || fail "podman's pull failed"
}

in_root() {
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$root" "$@"
}

timed_pull() {
  local from to
  from=$(date +%s%N)
  in_root docker pull --quiet "$IMAGE" >/dev/null
  to=$(date +%s%N)
  printf '%s pull: %d ms\n' "$1" $(((to - from) / 1000000))
}

stats() {
  curl --silent --show-error --fail http://127.0.0.1:17081/api/cache/stats
}

counter() {
  stats | grep -o "\"$1\": *[0-9]*" | grep -o '[0-9]*$'
}

fetched() {
  blob_gets "$scratch/registry"
}

config_of() {
  local manifest
  manifest=$(grep -o '"digest":"sha256:[0-9a-f]*"' "$1/index.json" | grep -o '[0-9a-f]\{64\}')
  grep -o '"config":{[^}]*}' "$1/blobs/sha256/$manifest" | grep -o 'sha256:[0-9a-f]*'
}

finish() {
  local status=$? log pid
  trap - EXIT
  if [ "$status" -ne 0 ]; then
    for log in registry proxy engine containerd; do
      printf -- '---- end of %s.log\n' "$log" >&2
      tail -n 30 "$scratch/$log.log" >&2 || true
    done
  fi
  # Last started, first ended; the engine ends its containerd itself.
  for ((at = ${#pids[@]} - 1; at >= 0; at--)); do
    pid=${pids[at]}
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  exit "$status"
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
else
  main "$@"
fi
