#!/usr/bin/env bash
# sanitize.sh: runs the unit tests of `sys`, where all the `unsafe` is, under AddressSanitizer, which
# sees reads and writes out of bounds and leaks, and under valgrind, which sees uninitialised bytes
# being used. Each where this machine has it; fails where it has neither.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/sanitize
host=$(rustc -vV | sed -n 's/^host: //p')

main() {
  local ran=0
  # A crate of its own: `sys` uses nothing of the rest, which takes minutes to build.
  mkdir -p "$target"
  cp Cargo.lock "$target/"
  {
    printf '[package]\nname = "sys"\nversion = "0.0.0"\nedition = "2024"\n'
    printf '[lib]\npath = "%s/src/sys/mod.rs"\n[dependencies]\n' "$PWD"
    # What `sys` uses.
    grep -E '^(libc|sd-notify|socket2|tempfile|zeroize) = ' Cargo.toml
    printf '[workspace]\n'
  } >"$target/Cargo.toml"
  cd "$target"

  if [ -e "$(rustc --print sysroot)/lib/rustlib/$host/lib/librustc-stable_rt.asan.a" ] ||
    [ -e "$(rustc --print sysroot)/lib/rustlib/$host/lib/librustc-nightly_rt.asan.a" ]; then
    echo "sys under AddressSanitizer"
    # The switch belongs to nightly compilers; the runtime comes with every one.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address -Cforce-frame-pointers" \
      cargo test --quiet --lib --target "$host" --target-dir "$target/address"
    ran=1
  else
    echo "sys NOT RUN under AddressSanitizer: this toolchain has no runtime for it"
  fi

  if command -v valgrind >/dev/null; then
    echo "sys under valgrind"
    local runner=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$host")_RUNNER
    env "$runner=valgrind --quiet --error-exitcode=9 --trace-children=yes" \
      cargo test --quiet --lib --target "$host" --target-dir "$target/plain"
    ran=1
  else
    echo "sys NOT RUN under valgrind: scripts/setup-tests.sh installs it"
  fi

  # Miri runs no system calls but a few; what it could look at holds no `unsafe` (tests/tidy.rs).
  if ! cargo miri --version >/dev/null 2>&1; then
    echo "miri is not in this toolchain: the pure code was not run under it"
  fi
  [ "$ran" = 1 ]
}

main
