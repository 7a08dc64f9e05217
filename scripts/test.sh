#!/usr/bin/env bash
# test.sh: everything the project holds itself to, from a fresh clone on: installs what the tests
# drive, runs them all, then the checks of check.sh. Needs root (packages, network namespaces).
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

scripts/setup-tests.sh
# Unit, integration and documentation tests; all of them even where one fails.
status=0
cargo test --locked --no-fail-fast || status=$?
# The integration tests once more without io_uring, as container engines forbid it; of the real
# clients, which take longest, skopeo alone.
DISCOBOT_SECCOMP=1 cargo test --locked --no-fail-fast --test '*' -- \
  --skip dockerd_ --skip containerd_ || status=$?
# The tests above have built the binary. The Docker Engine is that of another Debian release.
cargo build --locked
scripts/e2e-readme.sh "$target/debug/discobot-proxy" || status=$?
scripts/e2e-docker.sh "$target/debug/discobot-proxy" || status=$?
# TLS in the kernel, which this machine's own may not have.
scripts/ktls-vm.sh || status=$?
# The benchmark, for errors and wrong bytes.
scripts/bench.sh --short || status=$?
scripts/e2e-service.sh "$target/debug/discobot-proxy" || status=$?
scripts/e2e-container.sh || status=$?
scripts/e2e-package.sh || status=$?
scripts/check.sh --no-tests || status=$?
exit "$status"
