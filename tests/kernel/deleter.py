"""A lock the way lockmgr takes and gives it back.

To acquire: open with O_CREAT, flock without waiting. To wait: by inotify for
the deletion of the file, up to ten times. To release: unlock, then unlink, then
close. Between the unlock and the unlink somebody else can have locked the file
that is then unlinked; argv[2] == "slow" waits there for a line on standard
input to show it, "safe" unlinks first.

argv: path, "quick", "slow" or "safe", how often. It says "@held", "@unlocked"
and "@released" and goes on at each line of its standard input.
"""

import ctypes
import fcntl
import os
import sys

IN_DELETE_SELF = 0x400
IN_ATTRIB = 0x4
libc = ctypes.CDLL(None, use_errno=True)


def wait_for_deletion(path):
    notify = libc.inotify_init1(os.O_CLOEXEC)
    watch = libc.inotify_add_watch(notify, os.fsencode(path), IN_DELETE_SELF | IN_ATTRIB)
    if watch >= 0:
        # An attribute changes when the name goes, while others have the file open.
        while os.path.exists(path):
            os.read(notify, 4096)
            break
    os.close(notify)


def try_lock(path):
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def acquire(path):
    for _ in range(10):
        file = try_lock(path)
        if file is not None:
            return file
        wait_for_deletion(path)
    return try_lock(path)


def say(word):
    print("@" + word, flush=True)


path, manner, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
for _ in range(times):
    file = acquire(path)
    if file is None:
        say("gave up")
        continue
    say("held")
    if not sys.stdin.readline():
        break
    if manner == "safe":
        os.unlink(path)
        fcntl.flock(file, fcntl.LOCK_UN)
    else:
        fcntl.flock(file, fcntl.LOCK_UN)
        if manner == "slow":
            say("unlocked")
            sys.stdin.readline()
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    os.close(file)
    say("released")
