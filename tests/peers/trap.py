"""Pauses or kills a process of a lock library after each of its system calls.

The published trap: A judges a stale lock and is paused; B breaks it and
acquires; A goes on: are both inside? Here it is not one place that is tried.
One run shows which system calls A makes; then A is stopped (SIGSTOP, by
strace's fault injection) after each of them in turn, each time with fresh
processes and a fresh directory. Nothing of the library is changed. A and B are
processes that said "inside" and were not told to leave.

  stale    a killed holder's lock is there; A acquires and is stopped, B
           acquires, A goes on
  free     the same without a lock there
  busy     the same while another holds, who releases while A is stopped
  release  A holds, releases and is stopped; B acquires; A goes on; C acquires
  kill     free, stale and release, with SIGKILL in place of the stop: does B
           ever acquire?

trap.py ROOT [PEER …] [--scene NAME --point CALL:N [--kill]] [--jobs N]
"""

import argparse
import concurrent.futures
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Most judgements and changes; not close, fcntl or lseek, which decide nothing.
CALLS = (
    "open,openat,creat,link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,flock,ftruncate,truncate,read,pread64,write,pwrite64,stat,lstat,fstat,"
    "newfstatat,statx,utime,utimes,utimensat,futimesat,getdents64,kill,pidfd_open,vfork,clone,wait4"
)
EVERY_CALL = "all"
SCENES = ("stale", "free", "busy", "release")
BUSY_POINTS_MAX = 24  # who polls comes by the same calls again and again
START = 30  # seconds until a process must have started
COME = 6  # seconds until a stop must have come


class Peer:
    def __init__(self, name, version, command, calls=CALLS, aged=False, patience=3.0):
        self.name, self.version, self.command = name, version, command
        self.calls, self.aged, self.patience = calls, aged, patience


def peers(root):
    def python(kind, package, version, **more):
        interpreter = str(root / f"{package}-{version}" / "bin" / "python")
        return Peer(more.pop("name", package), version, [interpreter, str(HERE / "worker.py"), kind], **more)

    rust = str(root / "cargo" / "release" / "lockkeeper-peers")
    own = [sys.executable, str(HERE / "worker.py"), "flock-unlink"]
    return [
        python("openlock", "openlock", "1.2.1"),
        python("filelock-soft", "filelock", "3.32.7", name="filelock-3-soft"),
        python("filelock-soft", "filelock", "4.2.11", name="filelock-4-soft"),
        python("filelock", "filelock", "3.32.7", name="filelock-3"),
        python("filelock", "filelock", "4.2.11", name="filelock-4"),
        python("flufl", "flufl.lock", "10.0.0", aged=True, patience=5.0),
        python("pidlock", "pidlock", "3.0.2", name="pidlock-py", patience=5.0),
        Peer("proper-lockfile", "4.1.2", ["node", str(HERE / "worker.js"), str(root / "npm")], aged=True),
        Peer("pidlock-rs", "0.2.2", [rust, "pidlock"]),
        Peer("distributed-lock-file", "0.2.0", [rust, "distributed-lock-file"]),
        Peer("flock-unlink", "as lockmgr has it", own),
        Peer("lockkeeper", "this one", [rust, "lockkeeper"], calls=EVERY_CALL),
        Peer("lockkeeper-portable", "this one, pin never", [rust, "lockkeeper-portable"], calls=EVERY_CALL),
    ]


class Worker:
    def __init__(self, peer, path):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*peer.command, str(path)], text=True, bufsize=1, **pipes)
        self.lines = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        if self.hear(START) != "ready":
            raise SystemExit(f"trap: a worker of {peer.name} does not start: {peer.command}")

    def listen(self):
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put(None)

    def tell(self, word):
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It ended with an error: it says nothing more.

    def hear(self, seconds):
        """Its next word; None if it says nothing in this time or has ended."""
        try:
            return self.lines.get(timeout=seconds)
        except queue.Empty:
            return None

    def kill(self):
        self.process.kill()
        self.process.wait()


class Tracer:
    """strace on one thread; stops it after its n-th call of one kind, if told."""

    def __init__(self, worker, calls, directory, stop=None):
        self.trace = directory / "trace"
        command = ["strace", "-p", str(worker.process.pid), "-o", str(self.trace), "-e", f"trace={calls}"]
        if stop:
            command += ["-e", "inject={}:signal=SIGSTOP:when={}".format(*stop)]
        self.strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        if "attached" not in self.strace.stderr.readline():
            raise SystemExit("trap: strace cannot attach (is ptrace allowed here?)")

    def has_stopped(self):
        return "--- stopped by SIGSTOP ---" in self.trace.read_text()

    def lines(self):
        lines = self.trace.read_text().splitlines()
        return [line for line in lines if re.match(r"\w+\(", line)]

    def points(self):
        """Each call it made, as (name, how many of that name by then)."""
        seen = {}
        points = []
        for line in self.lines():
            name = line.split("(")[0]
            seen[name] = seen.get(name, 0) + 1
            points.append((name, seen[name]))
        return points

    def where(self):
        """The call after which it stands, paths cut short."""
        return re.sub(r"/\S*/([^/\s\"]+)", r"\1", self.lines()[-1])

    def end(self):
        self.strace.terminate()
        self.strace.wait()
        self.strace.stderr.close()


def grow_old(directory):
    """What takes a lease its time, at once."""
    past = time.time() - 3600
    for entry in directory.iterdir():
        os.utime(entry, (past, past), follow_symlinks=False)


class Round:
    """One scene with fresh processes, up to where A is told to go."""

    def __init__(self, peer, scene):
        self.peer, self.scene = peer, scene
        self.directory = Path(tempfile.mkdtemp(prefix="trap-", dir="/dev/shm"))
        (self.directory / "lock").mkdir()
        self.path = self.directory / "lock" / "a.lock"
        self.workers = []

    def start(self):
        worker = Worker(self.peer, self.path)
        self.workers.append(worker)
        return worker

    def __enter__(self):
        self.holder = None
        if self.scene in ("stale", "busy"):
            self.holder = self.start()
            self.must_enter(self.holder)
        if self.scene == "stale":
            self.holder.kill()
            if self.peer.aged:
                grow_old(self.path.parent)
        self.one, self.two = self.start(), self.start()
        if self.scene == "release":
            self.must_enter(self.one)
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.kill()
        shutil.rmtree(self.directory)

    def go(self, stop=None):
        tracer = Tracer(self.one, stop[0] if stop else self.peer.calls, self.directory, stop)
        self.one.tell("release" if self.scene == "release" else "acquire")
        return tracer

    def points(self):
        """The calls A makes undisturbed; of one that has to wait, those of the first moment."""
        tracer = self.go()
        self.one.hear(1.0 if self.scene == "busy" else START)
        tracer.end()
        points = tracer.points()
        return points[:BUSY_POINTS_MAX] if self.scene == "busy" else points

    def play(self, point, kills):
        """(outcome, where); "never" if A does not come by this time."""
        tracer = self.go(point)
        try:
            deadline = time.monotonic() + COME
            while not tracer.has_stopped():
                if not self.one.lines.empty() or time.monotonic() > deadline:
                    return "never", ""
                time.sleep(0.002)
            where = tracer.where()
            return (self.killed if kills else self.stopped)(self.one, self.two), where
        finally:
            self.one.kill()
            tracer.end()

    def must_enter(self, worker):
        worker.tell("acquire")
        if worker.hear(START) != "inside":
            raise SystemExit(f"trap: {self.peer.name} does not give a free lock")

    def killed(self, one, two):
        one.kill()
        if self.peer.aged:
            grow_old(self.path.parent)
        two.tell("acquire")
        return "ok" if two.hear(12) == "inside" else "stuck"

    def stopped(self, one, two):
        patience = self.peer.patience
        if self.scene == "busy":
            self.holder.tell("release")
            self.holder.hear(patience)
        two.tell("acquire")
        entered = two.hear(patience) == "inside"
        one.process.send_signal(signal.SIGCONT)
        if self.scene == "release":
            one.hear(patience)
            entered = entered or two.hear(patience) == "inside"
            three = self.start()
            three.tell("acquire")
            if three.hear(patience) == "inside":
                return "two" if entered else "ok"
            return "ok" if entered else "stuck"
        if one.hear(patience) == "inside":
            return "two" if entered else "ok"
        # It stood between A and the lock, and neither has it now.
        return "ok" if entered or two.hear(patience) == "inside" else "stuck"


def play(peer, scene, point, kills):
    with Round(peer, scene) as round:
        return round.play(point, kills)


def sweep(pool, peer, scene, kills, out):
    """How often each outcome came, over all points of a scene; the bad ones are shown."""
    with Round(peer, scene) as round:
        points = round.points()
    found = {}
    rounds = pool.map(lambda point: play(peer, scene, point, kills), points)
    for (call, number), (outcome, where) in zip(points, rounds):
        found[outcome] = found.get(outcome, 0) + 1
        if outcome in ("two", "stuck"):
            how = "--kill " if kills else ""
            print(f"  {how}--scene {scene} --point {call}:{number}: {outcome}: {where}", file=out, flush=True)
    return found


def cell(found):
    points = sum(found.get(outcome, 0) for outcome in ("ok", "two", "stuck"))
    words = [f"**{name} at {found[kind]}**" for kind, name in (("two", "two"), ("stuck", "stuck")) if kind in found]
    return f"{', '.join(words) or 'none'} of {points}"


def row(pool, peer, out):
    print(f"{peer.name} {peer.version}", file=out, flush=True)
    cells = [cell(sweep(pool, peer, scene, False, out)) for scene in SCENES]
    dead = {}
    for scene in ("free", "stale", "release"):
        for outcome, times in sweep(pool, peer, scene, True, out).items():
            dead[outcome] = dead.get(outcome, 0) + times
    cells.append(cell(dead))
    return f"| {peer.name} | {peer.version} | {' | '.join(cells)} | `tests/peers/run.sh {peer.name}` |"


HEAD = """\
| peer | version | paused at a stale lock | at a free lock | at a busy lock | at release | kill -9 | command |
|---|---|---|---|---|---|---|---|"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("only", nargs="*")
    parser.add_argument("--scene", choices=SCENES, default="stale")
    parser.add_argument("--point", help="one point, as in flock:2")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--jobs", type=int, default=8)
    arguments = parser.parse_args()
    chosen = [peer for peer in peers(arguments.root) if not arguments.only or peer.name in arguments.only]
    if not chosen:
        parser.error("no such peer; there are " + ", ".join(peer.name for peer in peers(arguments.root)))
    if arguments.point:
        call, number = arguments.point.split(":")
        for peer in chosen:
            print(peer.name, *play(peer, arguments.scene, (call, int(number)), arguments.kill))
        return
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        rows = [row(pool, peer, sys.stderr) for peer in chosen]
    print(HEAD)
    print("\n".join(rows))


main()
