#!/usr/bin/env bash
# e2e-docker.sh [BINARY]: the Docker Engine, containerd and podman of Debian 13 under its systemd, pointed at
# the proxy by the lines that its own page shows and by nothing else, pull an image of a Debian base system from
# a real docker-registry; Docker removes it and pulls it again. Prints both times and the admin port's
# stats around them; fails unless every pull but the first came from the cache alone, unless `--restart` restarts
# the units, and unless `--remove` leaves the clients' settings as they were.
#
# BINARY is target/release/discobot-proxy where none is named, built first. Root, Linux, cgroup v2. All of it
# runs in namespaces of its own that have no way out. The clients' root file system (600 MB, a few minutes
# to make) and the image are kept in ${DISCOBOT_TEST_CACHE:-${XDG_CACHE_HOME:-~/.cache}/discobot-proxy}.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"
# shellcheck source=scripts/blocks.sh
. "$here/blocks.sh"
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"
# shellcheck source=scripts/machine.sh
. "$here/machine.sh"
# shellcheck source=scripts/registry.sh
. "$here/registry.sh"

REGISTRY=registry.e2e.test
ADDRESS=10.78.0.2
IMAGE=$REGISTRY/lab/debian:v1
RUNNER=/srv/runner
RUNNER_UNIT=actions.runner.lab.service

main() {
  local binary base layout client
  "$here/setup-tests.sh"
  binary=$(binary_of "${1:-}")
  base=$(cache_dir)/trixie-systemd
  mkdir -p "$(cache_dir)"
  (
    flock 9
    [ -d "$base" ] || base_system trixie "$base" \
      ca-certificates,containerd,curl,dbus,docker-cli,docker.io,iptables,podman,systemd,systemd-sysv 9>&-
  ) 9>"$base.lock"
  layout=$("$here/debian-image.sh")
  scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/discobot-e2e.XXXXXX")
  trap 'machine_finish "$scratch/systemd.log" "$scratch/registry.log" "$scratch/proxy.log"' EXIT
  trap 'exit 1' INT TERM
  if ! machine_start "$scratch" "$binary" "$base" "$scratch"; then
    echo "e2e-docker.sh: NOT CHECKED: no cgroup v2 that can be written to" >&2
    return 0
  fi
  registry_start "$scratch/registry" "$REGISTRY" "$ADDRESS" nsenter -t "$init" --net
  registry_fill "$layout" "$ADDRESS:443/${IMAGE#*/}" nsenter -t "$init" --net
  start_proxy
  settings >"$scratch/settings"

  docker_is_restarted
  pull_by_docker "$layout"
  pull_by_containerd
  pull_by_podman
  [ "$(fetched)" -eq "$first" ] || fail "containerd or podman asked the registry for blobs"
  runner
  take_back
  printf '%s\n' "e2e-docker.sh: $first blobs fetched by the first pull, none by the others"
}

# The first process of the namespaces: makes a machine of the clients' files.
inside() {
  local binary=$1 base=$2 scratch=$3 root=$3/root dir
  machine_root "$base" "$scratch"
  ip addr add "$ADDRESS/32" dev lo
  # The clients' own overlays want an ordinary file system below them.
  for dir in docker containerd containers; do
    mkdir -p "$root/var/lib/$dir" "$scratch/lib/$dir"
    mount --bind "$scratch/lib/$dir" "$root/var/lib/$dir"
  done
  install -D "$binary" "$root/usr/local/bin/discobot-proxy"
  printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$REGISTRY" >"$root/etc/hosts"
  # Containers need not run here, so the engine is spared the host's packet filter.
  install -D -m 644 /dev/stdin "$root/etc/docker/daemon.json" <<'JSON'
{
  "bridge": "none",
  "ip6tables": false,
  "iptables": false
}
JSON
  install -D -m 644 /dev/stdin "$root/etc/systemd/system/$RUNNER_UNIT" <<UNIT
[Service]
EnvironmentFile=-$RUNNER/.env
ExecStart=/bin/sleep infinity
UNIT
  mkdir -p "$root$RUNNER"
  echo '{}' >"$root$RUNNER/.runner"
  echo /usr/local/bin:/usr/bin:/bin >"$root$RUNNER/.path"
  echo "$RUNNER_UNIT" >"$root$RUNNER/.service"
  printf 'LANG=C.UTF-8\n' >"$root$RUNNER/.env"
  machine_boot "$root"
}

start_proxy() {
  there mkdir -p /run/proxy
  there tee /run/proxy/ca.crt <"$scratch/registry/ca.crt" >/dev/null
  there tee /run/proxy/config.yaml >/dev/null <<CONFIG
tls: {cert_dir: /run/proxy/certs, intercept: [$REGISTRY], upstream_ca: [/run/proxy/ca.crt]}
cache: {dir: /var/lib/docker/proxy-cache}
CONFIG
  there discobot-proxy --config /run/proxy/config.yaml >"$scratch/proxy.log" 2>&1 &
  await $! "the proxy answers" stats
}

# set_up CLIENT [OPTION...]: the line of the proxy's page, and again, which has to change nothing. Sets said to
# what the first said.
set_up() {
  local line again
  line="curl -fsSL http://127.0.0.1:17080/setup/$1 | sh -s -- ${*:2}"
  said=$(on_it sh -c "$line") || fail "$line"
  again=$(on_it sh -c "$line")
  [[ $said == *Done.* && $again == *"Nothing was to be done"* ]] || fail "twice: $line: $said $again"
}

# With nothing of this machine's environment.
on_it() {
  there env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"
}

# What the scripts may change, with its bytes.
settings() {
  # The variables are that shell's.
  # shellcheck disable=SC2016
  on_it sh -euc 'cd /
    find etc/ssl etc/docker etc/systemd etc/containers srv usr/local/share -type f \
      ! -path etc/docker/key.json -exec sha256sum {} + | sort
    find etc/ssl etc/systemd -type l | sort'
}

pid_of() {
  there systemctl show --property MainPID --value "$1"
}

# Without the option the script says what to run and leaves the engine alone; with it, it is restarted.
docker_is_restarted() {
  local before line
  there systemctl start docker
  before=$(pid_of docker)
  set_up docker
  [[ $said == *'systemctl daemon-reload && systemctl restart docker'* ]] || fail "docker: $said"
  [ "$(pid_of docker)" = "$before" ] || fail "the engine was restarted unasked"
  [[ $(on_it docker info 2>/dev/null) != *:17080* ]] || fail "the engine knows the proxy already"
  line=$(inline "$here/../README.md" '… | sudo sh -s -- --restart')
  line=${line/…/curl -fsSL http://127.0.0.1:17080/setup/docker}
  said=$(on_it sh -c "${line/sudo /}") || fail "$line"
  [[ $said == *'docker was restarted.'* ]] || fail "$line: $said"
  [ "$(pid_of docker)" != "$before" ] || fail "the engine was not restarted"
  [[ $(on_it docker info 2>/dev/null) == *http://127.0.0.1:17080* ]] || fail "the engine knows no proxy"
}

# pull_by_docker LAYOUT: sets first to the blobs that the registry was asked for.
pull_by_docker() {
  local hits blobs=4 # a configuration and three layers
  printf '%s\n' "engine: $(on_it docker version --format '{{.Server.Version}}')"
  printf '%s\n' "stats before: $(stats)"
  timed_pull cold
  printf '%s\n' "stats between: $(stats)"
  hits=$(counter hits)
  first=$(fetched)
  on_it docker rmi "$IMAGE" >/dev/null
  timed_pull again
  printf '%s\n' "stats after: $(stats)"
  [ "$first" -ge "$blobs" ] || fail "the registry gave out only $first blobs on the cold pull"
  [ "$(counter hits)" -ge $((hits + blobs)) ] || fail "the second pull brought too few hits"
  [ "$(fetched)" -eq "$first" ] || fail "the second pull asked the registry for blobs"
  [ "$(on_it docker image inspect --format '{{.Id}}' "$IMAGE")" = "$(config_of "$1")" ] ||
    fail "the image is another one"
}

# The daemon itself pulls, as it does for Kubernetes.
pull_by_containerd() {
  local before
  before=$(pid_of containerd)
  set_up containerd --restart
  [ "$(pid_of containerd)" != "$before" ] || fail "containerd was not restarted"
  on_it ctr image pull --local=false "$IMAGE" >/dev/null || fail "containerd's pull failed"
}

pull_by_podman() {
  set_up podman
  on_it podman pull --quiet "$IMAGE" >/dev/null || fail "podman's pull failed"
}

# A runner of CI as its own script makes a service of it: what it runs has the variables.
runner() {
  there systemctl start "$RUNNER_UNIT"
  ! runner_has_proxy || fail "the runner knows the proxy already"
  set_up ci --runner "$RUNNER" --restart
  [[ $said == *"$RUNNER_UNIT was restarted."* ]] || fail "ci: $said"
  runner_has_proxy || fail "the runner knows no proxy"
}

runner_has_proxy() {
  there cat "/proc/$(pid_of "$RUNNER_UNIT")/environ" | tr '\0' '\n' |
    grep -qx 'HTTPS_PROXY=http://127.0.0.1:17080'
}

take_back() {
  set_up ci --runner "$RUNNER" --restart --remove
  ! runner_has_proxy || fail "the runner still knows the proxy"
  set_up podman --remove
  set_up containerd --remove --restart
  set_up docker --remove --restart
  [[ $(on_it docker info 2>/dev/null) != *:17080* ]] || fail "the engine still knows the proxy"
  settings | diff "$scratch/settings" - >&2 || fail "--remove left something behind"
}

timed_pull() {
  local from to
  from=$(date +%s%N)
  on_it docker pull --quiet "$IMAGE" >/dev/null
  to=$(date +%s%N)
  printf '%s pull: %d ms\n' "$1" $(((to - from) / 1000000))
}

stats() {
  there curl --silent --show-error --fail http://127.0.0.1:17081/api/cache/stats
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

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
else
  main "$@"
fi
