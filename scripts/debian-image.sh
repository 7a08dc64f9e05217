#!/usr/bin/env bash
# Prints the path of an OCI layout (tag v1) of a real Debian base system in three layers, of the
# release this machine runs. Made at the first call, kept for the next ones.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/debian.sh
. "$here/debian.sh"

suite=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
cache=$(cache_dir)
layout=$cache/debian-$suite
mkdir -p "$cache"
exec 9>"$layout.lock"
flock 9
if [ ! -e "$layout/index.json" ]; then
  rm -rf "$cache"/image.?????? # of a run that was killed
  work=$(mktemp -d "$cache/image.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  base_system "$suite" "$work/base" "" 9>&- >&2
  # Three layers as images of applications have them: what every program loads, data, the rest.
  mkdir -p "$work/lib/usr" "$work/data/usr"
  mv "$work/base/usr/lib" "$work/lib/usr/"
  mv "$work/base/usr/share" "$work/data/usr/"
  mv "$work/base/var" "$work/data/"
  rm -rf "$work/base/dev" "$work/base/proc" "$work/base/sys"
  mkdir "$work/base/dev" "$work/base/proc" "$work/base/sys"
  "$here/oci-layout.sh" "$layout" v1 "$work/lib" "$work/data" "$work/base" >&2
fi
printf '%s\n' "$layout"
