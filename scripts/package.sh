#!/usr/bin/env bash
# package.sh [--debug]: makes target/debian/discobot-proxy_*.deb: the program, its unit and user, a
# default configuration, manual, completions. Needs dpkg-dev.
#
# --debug: with the debug build, as the tests do.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

# Newer ones may read Cargo.toml in other ways; raise it on purpose, not by chance.
CARGO_DEB=3.8.0

main() {
  local profile=release binary made=target/package
  if [ "${1:-}" = --debug ]; then
    profile=dev
    cargo build --locked --quiet
    binary=${CARGO_TARGET_DIR:-target}/debug/discobot-proxy
  else
    binary=$(binary_of)
  fi
  have_tool cargo-deb "$CARGO_DEB"
  rm -rf "$made"
  mkdir -p "$made/man"
  # A package's programs have a place of their own.
  sed 's#/usr/local/bin/#/usr/bin/#' contrib/discobot-proxy.service >"$made/discobot-proxy.service"
  cp contrib/discobot-proxy.socket "$made/"
  "$binary" man "$made/man"
  "$binary" completions bash >"$made/discobot-proxy.bash"
  "$binary" completions zsh >"$made/_discobot-proxy"
  "$binary" completions fish >"$made/discobot-proxy.fish"
  cargo deb --locked --no-build --quiet --profile "$profile"
}

main "$@"
