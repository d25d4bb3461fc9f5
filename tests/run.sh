#!/bin/sh
# Set up what the tests need, then pass all of them. Arguments go to cargo test.
set -eu
cd "$(dirname "$0")/.."
tests/setup.sh
# Tests mostly wait: for leases, for servers, for what must not happen.
: "${RUST_TEST_THREADS:=$(($(nproc) * 2))}"
export RUST_TEST_THREADS
output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0
{ cargo test --all-features --no-fail-fast "$@" 2>&1 || echo "failed: $?"; } | tee "$output"
! grep -q '^failed: ' "$output" || status=1
# Once more what failed, where the end of a long log shows it.
awk '/^failures:$/ { keeps = 1 }
     keeps { kept = kept $0 "\n" }
     /^test result:/ { if (/FAILED/) printf "%s", kept; kept = ""; keeps = 0 }
     /^error: [0-9]+ targets? failed/ { tells = 1 }
     tells' "$output"
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$output"
exit "$status"
