# shellcheck shell=bash
# Sourced: a real registry that a test fills, and what it was asked. Needs common.sh.

# registry_start DIR NAME ADDRESS: docker-registry on port 443 of the address, with a certificate for the name
# by the CA DIR/ca.crt; its log is DIR.log. The command that must run it, such as one that changes the
# namespace, may follow. Sets registry to its process.
registry_start() {
  local dir=$1 name=$2 address=$3
  shift 3
  mkdir "$dir"
  authority "$dir" "e2e CA"
  server_certificate "$dir" "$name" "DNS:$name"
  cat >"$dir/config.yml" <<CONFIG
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: $dir/data}}
http: {addr: "$address:443", tls: {certificate: $dir/srv.crt, key: $dir/srv.key}}
CONFIG
  "$@" docker-registry serve "$dir/config.yml" >"$dir.log" 2>&1 &
  registry=$!
  await "$registry" "the registry answers" "$@" curl --silent --cacert "$dir/ca.crt" \
    --resolve "$name:443:$address" "https://$name/v2/"
}

# registry_fill LAYOUT IMAGE [COMMAND...]: copies tag v1 of the OCI layout there.
registry_fill() {
  local layout=$1 image=$2
  shift 2
  "$@" skopeo --insecure-policy copy --quiet --preserve-digests --dest-tls-verify=false \
    "oci:$layout:v1" "docker://$image"
}

# blob_gets DIR: how often the registry was asked for a blob.
blob_gets() {
  grep -c '"GET /v2/.*/blobs/sha256:' "$1.log" || true
}
