#!/bin/sh
# The published trap, for lockkeeper and for other libraries: is anybody inside
# with another, or stuck, when a process is paused or killed after any of its
# system calls? Prints a table. See the head of trap.py.
#
#   tests/peers/run.sh                 every row (about half an hour on two idle cores)
#   tests/peers/run.sh openlock        one row; after it, --scene and --point
#                                      play one point of it
#   tests/peers/run.sh --set-up        only download and build
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/peers"
root=$(CDPATH='' cd -- "$target/peers" && pwd)

python_peers="openlock==1.2.1 filelock==3.32.7 filelock==4.2.11 flufl.lock==10.0.0 pidlock==3.0.2"
npm_peers="proper-lockfile@4.1.2"

cat >&2 <<TEXT
peers: downloads into $root, once:
peers:   from PyPI: $python_peers (with psutil and atpublic, which they need)
peers:   from npm: $npm_peers (with graceful-fs, retry and signal-exit)
peers:   from crates.io: pidlock 0.2.2, distributed-lock-file 0.2.0, and what they and lockkeeper need
peers: needs: strace that may attach, ps, python3 with venv, node and npm, a Rust toolchain
TEXT

missing=
for tool in strace ps python3 node npm cargo; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
for python in /usr/bin/python3 python3; do
    "$python" -c 'import ensurepip, venv' 2>/dev/null && break
    python=
done
[ -n "$python" ] || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    echo "peers: install these first:$missing" >&2
    exit 1
fi

for peer in $python_peers; do
    home=$root/$(echo "$peer" | sed 's/==/-/')
    [ -e "$home/ready" ] && continue
    "$python" -m venv --clear "$home"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check "$peer"
    touch "$home/ready"
done
if [ ! -e "$root/npm/ready" ]; then
    mkdir -p "$root/npm"
    npm install --silent --no-audit --no-fund --prefix "$root/npm" $npm_peers >&2
    touch "$root/npm/ready"
fi
cargo build --release --quiet --manifest-path "$here/rust/Cargo.toml" --target-dir "$root/cargo"
[ "${1:-}" = --set-up ] && exit 0

exec "$python" "$here/trap.py" "$root" "$@"
