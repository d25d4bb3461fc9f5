"""A worker of the torture that takes the lock of another library: the same
oracle, tally and reports as worker.rs has.

peer.py LOCKS KIND PLACE NUMBER SEED HOLD_US PERIOD_US, where LOCKS is the
directory of locks.py.
"""

import ctypes
import os
import random
import signal
import struct
import sys
import threading
import time

FIELDS = {
    name: 16 + index
    for index, name in enumerate(
        "recovered repaired timed_out busy cancelled errors violations longest_wait_us waiting holding".split()
    )
}
LINE_BYTES = 96
DYING_MAX = 5.0
PR_SET_PDEATHSIG = 1


class Violation(Exception):
    pass


class Tally:
    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.fields = [0] * (16 + len(FIELDS))

    def add(self, **changes):
        for name, change in changes.items():
            self.fields[0 if name == "acquired" else FIELDS[name]] += change
        os.pwrite(self.file, struct.pack(f"={len(self.fields)}Q", *self.fields), 0)

    def waited(self, micros):
        place = FIELDS["longest_wait_us"]
        self.fields[place] = max(self.fields[place], micros)


def stat_of(pid):
    """State, threads and start time; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[17]), int(fields[19])


def threads_are_exiting(pid):
    """PF_EXITING of linux/sched.h."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        stats = [open(f"/proc/{pid}/task/{thread}/stat").read() for thread in threads]
    except OSError:
        return False
    return all(int(stat.rpartition(") ")[2].split()[6]) & 4 for stat in stats)


def is_gone(process):
    """See process.rs."""
    pid, started = process.split(".")
    stat = stat_of(pid)
    is_over = stat is None or stat[2] != int(started) or stat[0] in "ZXx" and stat[1] <= 1
    return is_over or threads_are_exiting(pid)


class Oracle:
    """See oracle.rs."""

    def __init__(self, place):
        self.inside = os.path.join(place, "inside")
        self.ledger = os.open(os.path.join(place, "ledger"), os.O_RDWR)
        self.process = f"{os.getpid()}.{stat_of(os.getpid())[2]}"
        self.visits = 0

    def lines(self):
        data = os.pread(self.ledger, 2 * LINE_BYTES, 0).decode()
        lines = data[:LINE_BYTES], data[LINE_BYTES:]
        return [(int(line[:20]), line[21:].strip()) for line in lines]

    def write(self, which, number, ticket):
        line = f"{number:>20} {ticket:<{LINE_BYTES - 22}}\n".encode()
        os.pwrite(self.ledger, line, which * LINE_BYTES)

    def who(self):
        try:
            return os.readlink(self.inside)
        except FileNotFoundError:
            return None

    def wait_until_dead(self, ticket):
        seen = None
        deadline = time.monotonic() + DYING_MAX
        while True:
            other = self.who()
            if other is None:
                raise Violation(f"{ticket} came in while {seen or 'somebody'} was inside, who then left")
            if seen not in (None, other):
                raise Violation(f"{ticket} came in after {seen}, and so did {other}")
            process = other.split(":")[0]
            if is_gone(process):
                return
            if process == self.process or time.monotonic() > deadline:
                raise Violation(f"{ticket} came in while {other} was inside, alive")
            seen = other
            time.sleep(0.0001)

    def enter(self, pause):
        ticket, repaired = f"{self.process}:{self.visits}", False
        self.visits += 1
        while True:
            try:
                os.symlink(ticket, self.inside)
                break
            except FileExistsError:
                pass
            self.wait_until_dead(ticket)
            number = max(line[0] for line in self.lines())
            self.write(0, number, "repaired")
            self.write(1, number, "repaired")
            try:
                os.unlink(self.inside)
            except FileNotFoundError:
                raise Violation(f"{ticket} replaces a dead visitor's link, which is gone") from None
            repaired = True
        first, second = self.lines()
        if first != second:
            self.give_up(ticket, f"{ticket} found two different lines: {first}, {second}")
        time.sleep(pause)
        self.write(0, first[0] + 1, ticket)
        return ticket, first[0] + 1, repaired

    def give_up(self, ticket, why):
        if self.who() == ticket:
            os.unlink(self.inside)
        raise Violation(why)

    def leave(self, ticket, number):
        if self.lines()[0] != (number, ticket):
            self.give_up(ticket, f"{ticket} wrote {number} and read {self.lines()}")
        self.write(1, number, ticket)
        if self.lines() != [(number, ticket)] * 2:
            self.give_up(ticket, f"{ticket} wrote {number} twice and read {self.lines()}")
        if self.who() != ticket:
            raise Violation(f"{ticket} leaves and finds {self.who()} inside")
        try:
            os.unlink(self.inside)
        except FileNotFoundError:
            raise Violation(f"{ticket} leaves, and its link is gone") from None


def main():
    locks, kind, place, number, seed, hold_us, period_us = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.path.insert(0, locks)
    from locks import KINDS

    dice = random.Random(int(seed))
    oracle = Oracle(place)
    tally = Tally(os.path.join(place, "tallies", number))
    reports = os.open(os.path.join(place, "reports"), os.O_WRONLY | os.O_APPEND)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(1), over.set()), daemon=True).start()
    lock = KINDS[kind](os.path.join(place, "lock", "torture.lock"))

    def report(line):
        os.write(reports, (" ".join(line.split()) + "\n").encode())

    def hold():
        try:
            ticket, line, repaired = oracle.enter(dice.uniform(0, 30e-6))
            tally.add(repaired=repaired)
            if dice.random() < 0.6:
                time.sleep(dice.uniform(0, int(hold_us) / 1e6))
            oracle.leave(ticket, line)
        except Violation as why:
            tally.add(violations=1)
            report(f"VIOLATION {why}")

    while not over.is_set():
        tally.add(waiting=1)
        asked = time.monotonic()
        try:
            lock.acquire()
        except Exception as error:
            tally.add(waiting=-1, errors=1)
            report(f"ERROR process {oracle.process} acquiring: {error!r}")
            continue
        tally.waited(int((time.monotonic() - asked) * 1e6))
        tally.add(waiting=-1, holding=1, acquired=1)
        hold()
        try:
            lock.release()
        except Exception as error:
            tally.add(errors=1)
            report(f"ERROR process {oracle.process} releasing: {error!r}")
        tally.add(holding=-1)
        if dice.random() < 0.25:
            time.sleep(dice.uniform(0, int(period_us) / 1e6))


main()
