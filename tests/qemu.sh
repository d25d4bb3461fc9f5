#!/usr/bin/env bash
# What the command promises, as aarch64 under qemu's user mode. The emulator
# converts system calls and passes them on to this kernel, so that locks of the
# emulated program and of native ones exclude each other. Argument: the program.
set -euo pipefail

# The C library of Debian's cross compiler.
emulated=(qemu-aarch64 -L /usr/aarch64-linux-gnu "$1")
place=$(mktemp -d)
lock=$place/a.lock
tidy() {
    # The commands outlive a killed holder.
    local command
    for command in $(jobs -p) $(cut -d' ' -f1 "$place/first" "$place/second" 2>/dev/null); do
        kill -9 "$command" 2>/dev/null || true
    done
    rm -rf "$place"
}
trap tidy EXIT

fail() {
    printf 'qemu: %s\n' "$*" >&2
    tail -n +1 "$place"/*.log >&2 || true
    exit 1
}

expect() { # WHAT, a code, then the command that gives it
    local what=$1 wanted=$2 code=0
    shift 2
    "$@" >"$place/expect.log" 2>&1 || code=$?
    [ "$code" = "$wanted" ] || fail "$what: code $code"
}

eventually() { # WHAT, then a command that succeeds in the end
    local what=$1
    shift
    for _ in $(seq 1200); do
        ! "$@" 2>/dev/null || return 0
        sleep 0.1
    done
    fail "never: $what"
}

# Hold the lock until the command is killed. Its process id goes to NAME, with
# that of the process from which the lock was recovered.
contend() { # NAME
    exec "${emulated[@]}" run "$lock" -- sh -c \
        "echo \$\$ \${LOCKKEEPER_RECOVERED_PID-} >'$place/$1.new'
         mv '$place/$1.new' '$place/$1'; exec sleep infinity" >"$place/$1.log" 2>&1
}

expect "the command's own code" 3 "${emulated[@]}" run "$lock" -- sh -c 'exit 3'
[ ! -e "$lock" ] || fail "the lock file was left"

contend first & first=$!
eventually "a free lock is acquired" test -e "$place/first"
expect "--try beside a holder" 73 "${emulated[@]}" run --try "$lock" -- true
expect "status beside a holder" 1 "${emulated[@]}" status "$lock"
expect "flock(1) beside a holder" 1 flock --nonblock "$lock" true

contend second & second=$!
eventually "the second waits" grep -q 'waiting for' "$place/second.log"
kill -9 "$first"
expect "--try while the killed holder's command runs" 73 "${emulated[@]}" run --try "$lock" -- true
read -r command _ <"$place/first"
kill -9 "$command"
eventually "a killed holder's lock is acquired" test -e "$place/second"
read -r command recovered <"$place/second"
[ "$recovered" = "$first" ] || fail "recovered from '$recovered', not $first"

kill "$second"
wait "$second" || true
[ ! -e "$lock" ] || fail "the lock file was left after a signal"
flock --no-fork "$place/kernel" sleep infinity & holder=$!
eventually "flock(1) holds" sh -c "! flock --nonblock '$place/kernel' true"
expect "--kernel beside flock(1)" 73 "${emulated[@]}" run --kernel flock --try "$place/kernel" -- true
kill "$holder"
echo "qemu: all as promised"
