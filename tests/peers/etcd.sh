#!/bin/sh
# What other locks in etcd do when a wait is cancelled, when the lease of a waiter is revoked
# and when the member that it waits at is killed. See the head of etcd/rows.rs.
#
#   tests/peers/etcd.sh                 every row (about ten minutes)
#   tests/peers/etcd.sh etcdctl         the rows of the peers that are called so
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/peers"
root=$(CDPATH='' cd -- "$target/peers" && pwd)

missing=
for tool in cargo setpriv curl protoc; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
[ -e /usr/include/google/protobuf/descriptor.proto ] || missing="$missing libprotobuf-dev"
if [ -n "$missing" ]; then
    echo "peers: install these first (protoc is in protobuf-compiler):$missing" >&2
    exit 1
fi
# Where tests/setup.sh unpacks etcd.
for version in 3.4 3.5; do
    PATH=$PATH:$here/../../target/etcd-$version/usr/bin
done
export PATH
exec cargo test --quiet --manifest-path "$here/etcd/Cargo.toml" \
    --target-dir "$root/etcd" -- "$@"
