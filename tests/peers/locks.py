"""The locks of other Python libraries under two names: acquire, which waits for
ever, and release. Each needs its library, which run.sh installs."""

import errno
import fcntl
import os
import time


class OpenLock:
    def __init__(self, path):
        import openlock

        self.lock = openlock.FileLock(path)

    def acquire(self):
        self.lock.acquire()

    def release(self):
        self.lock.release()


class FastOpenLock(OpenLock):
    """It looks every millisecond. Its race_delay stays as it is."""

    def __init__(self, path):
        import openlock

        openlock.set_defaults(retry_period=0.001)
        super().__init__(path)


class FileLock:
    kind = "FileLock"

    def __init__(self, path):
        import filelock

        self.lock = getattr(filelock, self.kind)(path)

    def acquire(self):
        self.lock.acquire()

    def release(self):
        self.lock.release()


class SoftFileLock(FileLock):
    kind = "SoftFileLock"


class FluflLock:
    def __init__(self, path):
        import flufl.lock

        self.lock = flufl.lock.Lock(path)

    def acquire(self):
        self.lock.lock()

    def release(self):
        self.lock.unlock()


class PidLock:
    def __init__(self, path):
        import pidlock

        self.module = pidlock
        directory, self.name = os.path.split(path)
        self.maker = pidlock.PIDLock(lockdir=directory, verbose=False)

    def acquire(self):
        while True:
            self.context = self.maker.lock(self.name, wait=1e9)
            try:
                return self.context.__enter__()
            except self.module.PIDCorruptException:
                time.sleep(0.05)

    def release(self):
        self.context.__exit__(None, None, None)


class FlockUnlink:
    """flock on the path, removed after the unlock and without a look at the inode."""

    def __init__(self, path):
        self.path = path

    def acquire(self):
        while True:
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self.file)
                time.sleep(0.01)
                continue
            os.ftruncate(self.file, 0)
            os.write(self.file, b"%d\n" % os.getpid())
            return

    def release(self):
        fcntl.flock(self.file, fcntl.LOCK_UN)
        os.close(self.file)
        try:
            os.unlink(self.path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


KINDS = {
    "openlock": OpenLock,
    "openlock-fast": FastOpenLock,
    "filelock": FileLock,
    "filelock-soft": SoftFileLock,
    "flufl": FluflLock,
    "pidlock": PidLock,
    "flock-unlink": FlockUnlink,
}
