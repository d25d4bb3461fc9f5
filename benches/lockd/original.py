"""A lock daemon as simple as the original: one thread, one flock, one file for each lock.

Directory as argument; says its port.
"""

import fcntl
import os
import sys
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

DIRECTORY = sys.argv[1]


class Locked:
    def __enter__(self):
        self.file = open(os.path.join(DIRECTORY, "daemon.lock"), "w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *raised):
        self.file.close()


def path(resource):
    return os.path.join(DIRECTORY, resource + ".resource.lock")


def lock(resource, client):
    with Locked():
        if os.path.exists(path(resource)):
            with open(path(resource)) as file:
                raise Exception("already locked by %r" % file.read())
        with open(path(resource), "w") as file:
            file.write(client)


def unlock(resource, client):
    with Locked():
        if not os.path.exists(path(resource)):
            raise Exception("not locked")
        with open(path(resource)) as file:
            holder = file.read().strip()
        if holder != client:
            raise Exception("%r has it, not %r" % (holder, client))
        os.unlink(path(resource))


server = SimpleXMLRPCServer(
    ("127.0.0.1", 0), requestHandler=SimpleXMLRPCRequestHandler, allow_none=True, logRequests=False
)
server.register_function(lock)
server.register_function(unlock)
print(server.server_address[1], flush=True)
server.serve_forever()
