#!/bin/sh
# What other locks in PostgreSQL do when a guard or a wait is dropped, when the session of a
# holder ends, when the server is restarted and when a pooler is between, and how many pairs
# a second they do. See the head of postgres/rows.rs.
#
#   tests/peers/postgres.sh             every row (about ten minutes)
#   tests/peers/postgres.sh sqlx        the rows of the peers that are called so
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/peers"
root=$(CDPATH='' cd -- "$target/peers" && pwd)

missing=
for tool in cargo setpriv pkg-config; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
pkg-config --exists openssl 2>/dev/null || missing="$missing libssl-dev"
if [ -n "$missing" ]; then
    echo "peers: install these first:$missing" >&2
    exit 1
fi
# sqlx 0.9 needs it.
case $(rustc --version) in
"rustc 1."[0-8]*.* | "rustc 1.9."* | "rustc 1.9"[0-3].*)
    echo "peers: sqlx 0.9 needs Rust 1.94, and this is $(rustc --version)" >&2
    exit 1
    ;;
esac
exec cargo test --release --quiet --manifest-path "$here/postgres/Cargo.toml" \
    --target-dir "$root/postgres" -- "$@"
