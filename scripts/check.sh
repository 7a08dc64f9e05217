#!/usr/bin/env bash
# check.sh [--no-tests]: what must pass before a change lands. Every check runs, whatever the others
# said; the end names those that failed, and those that could not be made here.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
# shellcheck source=scripts/common.sh
. scripts/common.sh

# Newer ones may know other rules; raise it on purpose, not by chance.
CARGO_DENY=0.20.2

failed=()
not_made=()

check() {
  local name=$1
  shift
  printf '== %s\n' "$name"
  "$@" || failed+=("$name")
}

main() {
  check format cargo fmt --check
  check clippy cargo clippy --locked --all-targets -- -D warnings
  if [ "${1:-}" != --no-tests ]; then
    check tests cargo test --locked --no-fail-fast
  fi
  check docs env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
  check 'stated Rust version' stated_rust
  check dependencies dependencies
  check advisories advisories
  check sanitizers scripts/sanitize.sh

  if [ "${#not_made[@]}" -gt 0 ]; then
    printf 'check.sh: NOT CHECKED: %s\n' "${not_made[@]}" >&2
  fi
  if [ "${#failed[@]}" -gt 0 ]; then
    printf 'check.sh: failed: %s\n' "${failed[*]}" >&2
    return 1
  fi
  printf 'check.sh: all well\n'
}

# The crate must build with the version that Cargo.toml states, not only with a newer one. Where it
# is the one in use, the checks above have shown that.
stated_rust() {
  local stated used
  stated=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' Cargo.toml)
  used=$(rustc --version | cut -d ' ' -f 2)
  if [ -z "$stated" ]; then
    echo "Cargo.toml states no rust-version" >&2
    return 1
  fi
  case "$used" in
    "$stated" | "$stated".*)
      echo "rustc $used is the stated $stated"
      return 0
      ;;
  esac
  local toolchain
  for toolchain in "$stated" "$stated.0"; do
    # Not `rustup run`, which would fetch one that is missing.
    if rustup toolchain list | grep -q "^$toolchain-"; then
      # A directory of its own: two compilers in one rebuild everything for each other.
      cargo "+$toolchain" check --locked --all-targets \
        --target-dir "${CARGO_TARGET_DIR:-target}/rust-$stated"
      return
    fi
  done
  echo "rustc here is $used; for this check: rustup toolchain install $stated" >&2
  return 1
}

dependencies() {
  have_tool cargo-deny "$CARGO_DENY" && cargo deny --locked check licenses sources bans
}

# The database of advisories lies on the net, outside the registries that a build needs. What it says
# is binding where it can be asked; where it cannot, that is said here and at the end, and is no
# failure.
advisories() {
  have_tool cargo-deny "$CARGO_DENY" || return 1
  local said
  if ! said=$(timeout 120 cargo deny --locked fetch db 2>&1); then
    printf 'their database can not be reached:\n%s\n' "$said"
    not_made+=("advisories (their database can not be reached)")
    return 0
  fi
  cargo deny --locked check advisories --disable-fetch
}

main "$@"
