"""A directory by way of FUSE, in which files are numbered by name, as by sshfs and
other users of libfuse's high-level interface without `use_ino`: a hard link has an inode
number of its own. `by_name_fuse.py BELOW MOUNTED [without-rename-flags]`
"""

import errno
import os
import sys

# Whose renames have flags.
os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
import mfusepy as fuse


def call(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        raise fuse.FuseOSError(error.errno)


class ByName(fuse.Operations):
    use_ns = True

    def at(self, path):
        return sys.argv[1] + path

    def getattr(self, path, fh=None):
        found = call(os.lstat, self.at(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
        return {name: getattr(found, name) for name in names}

    def readdir(self, path, fh):
        return [".", ".."] + call(os.listdir, self.at(path))

    def open(self, path, flags):
        return call(os.open, self.at(path), flags & ~os.O_NOFOLLOW)

    def create(self, path, mode, fi=None):
        return call(os.open, self.at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path, size, offset, fh):
        return call(os.pread, fh, size, offset)

    def write(self, path, data, offset, fh):
        return call(os.pwrite, fh, data, offset)

    def truncate(self, path, length, fh=None):
        return call(os.truncate, self.at(path), length)

    def release(self, path, fh):
        os.close(fh)
        return 0

    def unlink(self, path):
        return call(os.unlink, self.at(path))

    def rename(self, old, new, flags=0):
        if flags and "without-rename-flags" in sys.argv:
            raise fuse.FuseOSError(errno.EINVAL)
        if flags and os.path.lexists(self.at(new)):
            raise fuse.FuseOSError(errno.EEXIST)
        return call(os.rename, self.at(old), self.at(new))

    def link(self, new, old):
        return call(os.link, self.at(old), self.at(new))


def rename_with_flags(self, old, new, flags):
    return self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)


# The library drops the flags.
fuse.FUSE.rename_fuse_3 = rename_with_flags
fuse.FUSE(ByName(), sys.argv[2], foreground=True, nothreads=True)
