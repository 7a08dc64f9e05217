#!/usr/bin/env bash
# oci-layout.sh OUT TAG DIR...: writes an OCI image layout of one image to OUT, a gzipped layer for
# each DIR in order. OUT appears whole or not at all.
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "usage: oci-layout.sh OUT TAG DIR..." >&2
  exit 2
fi
out=$1 tag=$2
shift 2
part=$out.part
blobs=$part/blobs/sha256
rm -rf "$part"
mkdir -p "$blobs"

digest_of() { sha256sum "$1" | cut -d ' ' -f 1; }

# Names a finished file by its digest and prints "hex size".
keep() {
  local hex
  hex=$(digest_of "$1")
  mv "$1" "$blobs/$hex"
  printf '%s %s\n' "$hex" "$(stat -c %s "$blobs/$hex")"
}

descriptor() {
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s}' "$@"
}

layers="" diff_ids=""
for dir in "$@"; do
  tar -C "$dir" --sort=name --numeric-owner --mtime=@0 -cf "$part/layer.tar" .
  diff_ids+="${diff_ids:+,}\"sha256:$(digest_of "$part/layer.tar")\""
  gzip -1 -n "$part/layer.tar"
  read -r hex size < <(keep "$part/layer.tar.gz")
  layers+="${layers:+,}$(descriptor layer.v1.tar+gzip "$hex" "$size")"
done

case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) architecture=$(uname -m) ;;
esac
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
  "$architecture" "$diff_ids" >"$part/config"
read -r hex size < <(keep "$part/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
  "$(descriptor config.v1+json "$hex" "$size")" "$layers" >"$part/manifest"
read -r hex size < <(keep "$part/manifest")
printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' \
  application/vnd.oci.image.manifest.v1+json "$hex" "$size" "$tag" >"$part/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$part/oci-layout"
rm -rf "$out"
mv "$part" "$out"
