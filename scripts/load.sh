#!/usr/bin/env bash
# load.sh URL... [OPTIONS]: loads a running proxy or server and says what it gives and costs.
#
#   scripts/load.sh --proxy 127.0.0.1:17080 --ca certs/ca.crt -c 64 \
#     https://registry.example.com/v2/app/blobs/sha256:HEX
#
# `scripts/load.sh --help` has every option, and examples. Builds the generator first.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/bench/build.sh
. "$here/bench/build.sh"
[ ! -t 2 ] || echo "load.sh: building the generator; the first time that takes minutes" >&2
exec "$(built load)" "$@"
