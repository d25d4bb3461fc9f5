"""Takes a lock of the kernel's on a file when it starts, and does what it is told.

argv: how ("flock", "lockf"), path. It says "@held", and ends at the end of its
standard input or after "close", "unlock".
"""

import fcntl
import sys

how, path = sys.argv[1:]
file = open(path, "a")
if how == "flock":
    fcntl.flock(file, fcntl.LOCK_EX)
else:
    fcntl.lockf(file, fcntl.LOCK_EX)
print("@held", flush=True)
for line in sys.stdin:
    if line == "unlock\n":
        (fcntl.flock if how == "flock" else fcntl.lockf)(file, fcntl.LOCK_UN)
    elif line == "close\n":
        file.close()
    print("@done", flush=True)
