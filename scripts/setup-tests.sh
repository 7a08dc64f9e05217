#!/usr/bin/env bash
# Installs the Debian packages that the tests drive: real registries and clients, and the tools that
# make images, certificates, namespaces and emulated machines; and what drives the browser, below
# the target directory. Does nothing where all are there. Starts no service.
set -euo pipefail
target=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}

packages=(
  apache2-utils buildah busybox-static ca-certificates chromium containerd cpio crun curl debian-archive-keyring
  debootstrap docker-registry docker.io dpkg-dev e2fsprogs fonts-dejavu-core gcc gnuplot-nox haproxy
  iproute2 jq kmod libc6-dev nginx openssl podman procps prometheus python3 qemu-system-x86 skopeo
  squid-openssl strace systemd util-linux valgrind xz-utils
)

# Node drives the browser; whichever is there will do.
command -v node >/dev/null || packages+=(nodejs)
command -v npm >/dev/null || packages+=(npm)

browser_tools() {
  local driver=playwright-core@1.65.1 tools=$target/browser-tools
  [ -e "$tools/$driver" ] && return
  mkdir -p "$tools"
  echo "setup-tests.sh: installing $driver"
  npm install --prefix "$tools" --no-audit --no-fund --ignore-scripts --silent "$driver" >/dev/null
  touch "$tools/$driver"
}

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
  browser_tools
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "setup-tests.sh: not root, and these packages are missing: ${missing[*]}" >&2
  exit 1
fi

# The packages of daemons start them on installation unless this file says no. The tests start their
# own, each with its own directories, and nothing may listen on the machine's addresses meanwhile.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

echo "setup-tests.sh: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
browser_tools
