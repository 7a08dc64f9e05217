# shellcheck shell=bash
# Sourced: Debian base systems for the tests, from the mirror that this machine's apt uses already.

# Where finished base systems and images are kept between runs.
cache_dir() {
  printf '%s\n' "${DISCOBOT_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/discobot-proxy}"
}

# The first archive of apt's configuration that is no security archive.
apt_mirror() {
  # apt names only archives whose lists it has.
  listed_mirror || { apt-get update -qq && listed_mirror; } || {
    echo "debian.sh: apt is configured with no Debian archive" >&2
    return 1
  }
}

listed_mirror() {
  # The $(…) is apt's own placeholder.
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
    awk '!/security/ && !found++ { print } END { exit !found }'
}

# base_system SUITE DIR PACKAGES: a minimal system of SUITE in DIR, whole or not at all.
base_system() {
  local suite=$1 dir=$2 packages=$3 mirror log
  local options=(--variant=minbase)
  [ -z "$packages" ] || options+=("--include=$packages")
  mirror=$(apt_mirror)
  log=$dir.log
  rm -rf --one-file-system "$dir" "$dir.part"
  mkdir -p "$dir.part"
  # What debootstrap mounts in there goes with the mount namespace, even where it is killed.
  if ! unshare --mount debootstrap "${options[@]}" "$suite" "$dir.part" "$mirror" >"$log" 2>&1; then
    tail -n 20 "$log" "$dir.part/debootstrap/debootstrap.log" >&2 || true
    echo "debian.sh: debootstrap of $suite failed" >&2
    return 1
  fi
  rm -rf "$dir.part"/var/cache/apt/archives/*.deb
  mv "$dir.part" "$dir"
}
