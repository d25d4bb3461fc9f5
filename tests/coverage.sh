#!/bin/sh
# Which lines of the protocol do the tests run? Prints a table of its modules
# and the lines that are left.
#
#   tests/coverage.sh      some minutes; installs llvm-tools and cargo-llvm-cov
#
# Counted are the tests of the crate itself in a release build, which is where
# the explorer runs (but for its largest world, which adds nothing here), and the
# tests between processes without features.
# Processes that are killed count: their counters are mapped to the file.
#
# What is left, and why:
#   * attempt: answers that the kernel does not give (a socket or a link that
#     could be opened, also in probe), the end of 64 torn reads, and a foreign
#     file on a network file system
#   * pinned, portable, sweep, held: rules that a mutant leaves out, compiled in
#     with --cfg lockkeeper_proof only
#   * pinned: a file that disappears between a refused and a second open; a
#     network file system that refuses exclusive locks to readers only
#   * portable: the end of 64 claims, one on the other; sweep: a candidate that
#     cannot be read, and stays
#   * held: the file of a hold, which AsFd of a guard gives and the command needs;
#     liveness: a process table that cannot be read, a number too large to be a
#     process id, stopped processes, which only waiting asks for, and a /proc of
#     another pid namespace; record: Debug
set -eu
cd "$(dirname "$0")/.."

rustup component add llvm-tools >&2
cargo llvm-cov --version >/dev/null 2>&1 || cargo install cargo-llvm-cov --locked >&2
tests/setup.sh >&2

set -- --lib
for test in acquire_all bad_input cancellation events exclusion fork guard_drop kill \
    liveness_evidence lost openlock_parity portable queue recovery; do
    set -- "$@" --test "$test"
done
export RUSTFLAGS="-Cllvm-args=-runtime-counter-relocation"
export LLVM_PROFILE_FILE_NAME="lockkeeper-%m%c.profraw"
cargo llvm-cov --release --show-missing-lines --no-fail-fast "$@" -- --skip with_three_kills |
    grep -E '^(Filename|Uncovered|(attempt|held|record|liveness)[./])|src/(attempt|held|record|liveness)[./]'
