"""One openlock process of a test. Lines that begin with @ are for the test.

player.py hold PATH      acquire, say so, release when told
player.py contend PATH   acquire and release until told to stop; say when first,
                         then how often, how often somebody else was inside as
                         well, and how often it took longer from a look to what
                         it wrote then than race_delay allows
player.py slow PATH      the same on a system a tenth of race_delay slow at each
                         step: shows within seconds what takes openlock minutes
player.py once PATH      try once, and say "held" or "busy"
player.py who PATH       say who holds it, by openlock's own look
"""

import os
import random
import sys
import threading
import time

import openlock


def tell(line):
    print(f"@{line}", flush=True)


def hold(lock):
    lock.acquire()
    tell("held")
    sys.stdin.readline()
    lock.release()
    tell("released")


def brief():
    return random.uniform(0, 0.003)


def stay():
    """Now and then long enough for who judged wrongly to get in beside us."""
    return 0.3 if random.random() < 0.2 else brief()


class Delays:
    """What was seen is written over only if that is done soon: else openlock
    promises nothing."""

    def __init__(self, lock):
        self.count = 0
        look, write = lock._FileLock__lock_state, lock._FileLock__write_lock_file

        def looked(*args, **kwargs):
            self.began = time.monotonic()
            return look(*args, **kwargs)

        def written(*args, **kwargs):
            done = write(*args, **kwargs)
            allowed = openlock.get_defaults()["race_delay"] * 2 / 3
            self.count += time.monotonic() - self.began >= allowed
            return done

        lock._FileLock__lock_state = looked
        lock._FileLock__write_lock_file = written


def contend(lock, first=lambda: tell("entered")):
    delays = Delays(lock)
    inside = f"{lock.lock_file}.inside"
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    entered = overlaps = 0
    while not over.is_set():
        try:
            lock.acquire(timeout=1)
        except (openlock.Timeout, openlock.InvalidLockFile):
            continue
        entered += 1
        if entered == 1:
            first()
        try:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            overlaps += 1
        time.sleep(stay())
        try:
            os.remove(inside)
        except FileNotFoundError:
            overlaps += 1
        lock.release()
        time.sleep(brief())
    tell(f"{entered} {overlaps} {delays.count}")


def slow(lock):
    def slowly(step):
        def then(*args, **kwargs):
            done = step(*args, **kwargs)
            time.sleep(openlock.get_defaults()["race_delay"] / 10)
            return done

        return then

    # After the link was refused and before the path is read; after "unlocked"
    # and before the rename.
    lock._FileLock__create_lock_file = slowly(lock._FileLock__create_lock_file)
    lock._FileLock__lock_state = slowly(lock._FileLock__lock_state)
    contend(lock, first=lambda: None)


def once(lock):
    try:
        lock.acquire(timeout=0)
    except openlock.Timeout:
        return tell("busy")
    tell("held")


def who(lock):
    tell(lock.getpid())


openlock.set_defaults(retry_period=0.001)
role, path = sys.argv[1:]
roles = {"hold": hold, "contend": contend, "once": once, "slow": slow, "who": who}
roles[role](openlock.FileLock(path))
