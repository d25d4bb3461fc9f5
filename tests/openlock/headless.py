"""Hold a lock in a process whose first thread is gone: a zombie to /proc,
alive for all that matters. Ends when its input does.

headless.py PATH
"""

import ctypes
import sys
import threading

import openlock


def live_on():
    print("@headless", flush=True)
    sys.stdin.readline()


openlock.FileLock(sys.argv[1]).acquire()
threading.Thread(target=live_on).start()
ctypes.CDLL(None).pthread_exit(None)
