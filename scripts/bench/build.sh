# shellcheck shell=bash
# Sourced: builds what is measured and what measures.

# built NAME...: builds the binary or the benches of these names and prints the paths, one a line.
# With the profile that $profile names, release where it is not set.
built() {
  local name targets=()
  for name in "$@"; do
    case $name in
      discobot-proxy) targets+=(--bin "$name") ;;
      *) targets+=(--bench "$name") ;;
    esac
  done
  # Paths come from cargo: a bench's file name holds a hash. It prints them in an order of its own.
  local said
  said=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." &&
    cargo build --profile "${profile:-release}" --locked --quiet --message-format=json "${targets[@]}")
  for name in "$@"; do
    printf '%s\n' "$said" | grep -F '"reason":"compiler-artifact"' | grep -F "\"name\":\"$name\"" |
      grep -o '"executable":"[^"]*"' | tail -n 1 | cut -d '"' -f 4
  done
}
