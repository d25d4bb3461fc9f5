"""What libpq makes of connection strings, one a line, in hexadecimal.

`parse` prints what a string itself says; `resolve` what libpq would connect with, after
services, variables, password files and defaults. Each answer is a line of JSON.
"""
import ctypes
import json
import sys

libpq = ctypes.CDLL("libpq.so.5")


class Option(ctypes.Structure):
    _fields_ = [(name, ctypes.c_char_p) for name in
                ("keyword", "envvar", "compiled", "val", "label", "dispchar")]
    _fields_.append(("dispsize", ctypes.c_int))


libpq.PQconninfoParse.restype = ctypes.POINTER(Option)
libpq.PQconninfo.restype = ctypes.POINTER(Option)
libpq.PQconninfo.argtypes = [ctypes.c_void_p]
libpq.PQconnectStart.restype = ctypes.c_void_p
for name in ("PQuser", "PQdb", "PQpass", "PQerrorMessage"):
    getattr(libpq, name).restype = ctypes.c_char_p
    getattr(libpq, name).argtypes = [ctypes.c_void_p]


def pairs(options):
    found, index = {}, 0
    while options[index].keyword:
        if options[index].val is not None:
            found[options[index].keyword.decode()] = options[index].val.decode(errors="replace")
        index += 1
    return found


def parse(text):
    message = ctypes.c_char_p()
    options = libpq.PQconninfoParse(text, ctypes.byref(message))
    return pairs(options) if options else None


def resolve(text):
    connection = libpq.PQconnectStart(text)
    found = pairs(libpq.PQconninfo(connection))
    found["user"] = libpq.PQuser(connection).decode()
    found["dbname"] = libpq.PQdb(connection).decode()
    found["password"] = (libpq.PQpass(connection) or b"").decode()
    found["error"] = libpq.PQerrorMessage(connection).decode()
    return found


ask = {"parse": parse, "resolve": resolve}[sys.argv[1]]
for line in sys.stdin:
    print(json.dumps(ask(bytes.fromhex(line.strip()))), flush=True)
