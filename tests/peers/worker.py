"""A process that takes one lock of another library, as it is told.

worker.py KIND PATH, then lines on standard input: "acquire" (waits for ever,
then says "inside"), "release" (then says "out"). It first takes and gives back
a lock in another directory, so that what is only done once is done by then.
"""

import os
import sys
import tempfile

from locks import KINDS


def main():
    kind, path = sys.argv[1:]
    with tempfile.TemporaryDirectory() as elsewhere:
        first = KINDS[kind](os.path.join(elsewhere, "warm"))
        first.acquire()
        first.release()
    lock = KINDS[kind](path)
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "acquire\n":
            lock.acquire()
            print("inside", flush=True)
        elif line == "release\n":
            lock.release()
            print("out", flush=True)


main()
