#!/usr/bin/env bash
# e2e-docker.sh [BINARY]: the Docker Engine of Debian 13, told of the proxy by `proxies` in its
# daemon.json and by the CA in its system store and by nothing else, pulls an image of a Debian base
# system from a real docker-registry, removes it and pulls it again. Prints both times and the admin
# port's stats around them; fails unless the second pull came from the cache alone.
#
# BINARY is target/release/discobot-proxy where none is named, built first. Root, Linux. All of it runs
# in namespaces of its own that have no way out. The engine's root file system (460 MB, a minute or
# two to make) and the image are kept in ${DISCOBOT_TEST_CACHE:-${XDG_CACHE_HOME:-~/.cache}/discobot-proxy}.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"

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
    [ -d "$cache/trixie" ] || base_system trixie "$cache/trixie" \
      ca-certificates,containerd,docker-cli,docker.io,iptables 9>&-
  ) 9>"$cache/trixie.lock"
  layout=$("$here/debian-image.sh")
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-e2e.XXXXXX")
  # A process namespace: whatever is started inside ends with its first process, this script's
  # second half. Mounts and addresses go with their namespaces.
  trap 'rm -rf "$scratch"' EXIT
  env -u SSL_CERT_FILE -u SSL_CERT_DIR -u HTTPS_PROXY -u HTTP_PROXY -u https_proxy -u http_proxy \
    unshare --net --mount --pid --fork --kill-child --mount-proc \
    "$0" --inside "$binary" "$cache/trixie" "$layout" "$scratch"
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

  start_registry
  start_proxy "$binary"
  start_engine "$base"
  skopeo --insecure-policy copy --quiet --preserve-digests --dest-tls-verify=false \
    "oci:$layout:v1" "docker://$IMAGE"

  printf '%s\n' "engine: $(in_root docker version --format '{{.Server.Version}}')"
  printf '%s\n' "stats before: $(stats)"
  timed_pull cold
  printf '%s\n' "stats between: $(stats)"
  local hits fetched
  hits=$(counter hits)
  fetched=$(blob_gets)
  in_root docker rmi "$IMAGE" >/dev/null
  timed_pull again
  printf '%s\n' "stats after: $(stats)"

  local blobs=4 # a configuration and three layers
  [ "$fetched" -ge "$blobs" ] || fail "the registry gave out only $fetched blobs on the cold pull"
  [ "$(counter hits)" -ge $((hits + blobs)) ] || fail "the second pull brought too few hits"
  [ "$(blob_gets)" -eq "$fetched" ] || fail "the second pull asked the registry for blobs"
  [ "$(in_root docker image inspect --format '{{.Id}}' "$IMAGE")" = "$(config_of "$layout")" ] ||
    fail "the image is another one"
  printf '%s\n' "e2e-docker.sh: $fetched blobs fetched by the first pull, none by the second"
}

start_registry() {
  local dir=$scratch/registry
  mkdir "$dir"
  authority "$dir" "e2e CA"
  server_certificate "$dir" "$REGISTRY" "DNS:$REGISTRY"
  cat >"$dir/config.yml" <<CONFIG
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: $dir/data}}
http: {addr: "$ADDRESS:443", tls: {certificate: $dir/srv.crt, key: $dir/srv.key}}
CONFIG
  docker-registry serve "$dir/config.yml" >"$scratch/registry.log" 2>&1 &
  pids+=($!)
  await $! "the registry answers" curl --silent --cacert "$dir/ca.crt" "https://$REGISTRY/v2/"
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
start_engine() {
  mkdir -p "$root" "$scratch/upper" "$scratch/work" "$scratch/docker"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
  for dir in proc sys dev; do
    mount --rbind "/$dir" "$root/$dir"
  done
  # The engine's own overlays want an ordinary file system below them.
  mkdir -p "$root/var/lib/docker" "$root/etc/docker"
  mount --bind "$scratch/docker" "$root/var/lib/docker"
  cp "$scratch/hosts" "$root/etc/hosts"
  cp "$scratch/proxy/certs/ca.crt" "$root/usr/local/share/ca-certificates/discobot-proxy.crt"
  in_root update-ca-certificates >/dev/null 2>&1
  cat >"$root/etc/docker/daemon.json" <<'CONFIG'
{"proxies": {"http-proxy": "http://127.0.0.1:17080", "https-proxy": "http://127.0.0.1:17080"}}
CONFIG
  # Containers need not run here, so it is spared the host's packet filter.
  in_root dockerd --iptables=false --ip6tables=false --bridge=none >"$scratch/engine.log" 2>&1 &
  pids+=($!)
  await "${pids[-1]}" "the engine answers" in_root docker version
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

blob_gets() {
  grep -c '"GET /v2/.*/blobs/sha256:' "$scratch/registry.log" || true
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
    for log in registry proxy engine; do
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
