# shellcheck shell=bash
# Sourced: what the scripts that start real peers share.

# fail WORDS: says who fails and why, and ends the script.
fail() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit 1
}

# await PID WORDS COMMAND...: until the command succeeds; gives up with these words after a minute, or
# once the process has ended.
await() {
  local pid=$1 words=$2
  shift 2
  for _ in $(seq 300); do
    if "$@" >/dev/null 2>&1; then
      return 0
    fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  fail "waited in vain until $words"
}

# binary_of [BINARY]: its whole path; without a name the release build's, which is made first.
binary_of() {
  local root=${BASH_SOURCE[0]%/*}/.. binary=${1:-}
  if [ -z "$binary" ]; then
    (cd "$root" && cargo build --release --locked --quiet)
    binary=${CARGO_TARGET_DIR:-$root/target}/release/discobot-proxy
  fi
  realpath "$binary"
}

# authority DIR NAME: a CA for two days, DIR/ca.crt and DIR/ca.key.
authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$2" \
    -keyout "$1/ca.key" -out "$1/ca.crt" 2>/dev/null
}

# server_certificate DIR NAME ALTERNATIVES: DIR/srv.crt and DIR/srv.key, by the CA in DIR.
server_certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" \
    -keyout "$1/srv.key" -out "$1/srv.csr" 2>/dev/null
  openssl x509 -req -in "$1/srv.csr" -CA "$1/ca.crt" -CAkey "$1/ca.key" -CAcreateserial -days 2 \
    -extfile <(printf 'subjectAltName=%s' "$3") -out "$1/srv.crt" 2>/dev/null
}

# have_tool NAME VERSION: installs a cargo command where it is missing or another version.
have_tool() {
  if [ "$(cargo "${1#cargo-}" --version 2>/dev/null | grep -o '[0-9.]*$')" = "$2" ]; then
    return 0
  fi
  # Built to be ready soon, not to run fast: a few minutes less on two cores.
  cargo install --quiet --locked --force --version "$2" \
    --config profile.release.lto=false --config profile.release.opt-level=1 \
    --config profile.release.codegen-units=16 --config profile.release.debug=false "$1"
}
