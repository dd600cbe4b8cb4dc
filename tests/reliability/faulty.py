"""A disk that fails at its n-th write, flush, rename or open; and processes to be killed."""

import builtins
import errno
import io
import os
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

KINDS = ("open", "write", "fsync", "rename", "mkdir")
ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Disk:
    """Counts what is done to it, and fails what it is told to fail.

    Attributes:
        below: the folder whose files count.
        kind: of `KINDS`; empty fails nothing.
        at: the number, from 1, of the call of that kind that fails.
        error: how, an errno.
        stays: every later call of that kind fails too, as on a disk that stays full.
        done: calls so far, by kind.
        failed: how many of them failed.
    """

    below: Path
    kind: str = ""
    at: int = 0
    error: int = errno.ENOSPC
    stays: bool = False
    done: Counter = field(default_factory=Counter)
    failed: int = 0

    def call(self, kind, path):
        """Count a call, and raise if it is to fail."""
        if not self.holds(path):
            return
        self.done[kind] += 1
        number = self.done[kind]
        if kind == self.kind and (number == self.at or (self.stays and number > self.at)):
            self.failed += 1
            raise OSError(self.error, os.strerror(self.error), str(path))

    def holds(self, path):
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.below)


class File(io.FileIO):
    """A file on such a disk: a write that fails has put half of its bytes there."""

    def __init__(self, disk, path, mode):
        disk.call("open", path)
        super().__init__(path, mode)
        self.disk, self.path = disk, path

    def write(self, content):
        whole = memoryview(content).cast("B")
        try:
            self.disk.call("write", self.path)
        except OSError:
            super().write(whole[: len(whole) // 2])
            raise
        return super().write(whole)


@contextmanager
def installed(disk):
    """Put a disk under Python's files; HDF5 writes a store through one of them."""
    real = SimpleNamespace(
        open=io.open, os_open=os.open, fsync=os.fsync, replace=os.replace, rename=os.rename
    )
    real.mkdir = os.mkdir
    numbers = {}  # of open descriptors, to know what a flush is of

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        if not (set(mode) & set("wxa+") and disk.holds(file)):
            return real.open(file, mode, buffering, encoding, errors, newline)
        raw = File(disk, file, mode.replace("t", "").replace("b", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def os_open(path, flags, *arguments, **options):
        if flags & WRITING:
            disk.call("open", path)
        number = real.os_open(path, flags, *arguments, **options)
        numbers[number] = path
        return number

    def fsync(number):
        disk.call("fsync", numbers.get(number))
        real.fsync(number)

    def moved(function):
        def move(source, target, **options):
            disk.call("rename", target)
            function(source, target, **options)

        return move

    def mkdir(path, *arguments, **options):
        disk.call("mkdir", path)
        real.mkdir(path, *arguments, **options)

    with ExitPatches() as patch:
        patch(io, "open", opened)
        patch(builtins, "open", opened)
        patch(os, "open", os_open)
        patch(os, "fsync", fsync)
        patch(os, "replace", moved(real.replace))
        patch(os, "rename", moved(real.rename))
        patch(os, "mkdir", mkdir)
        yield disk


class ExitPatches:
    """Attributes that have other values until the end of a block."""

    def __enter__(self):
        self.before = []
        return self

    def __call__(self, owner, name, value):
        self.before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def __exit__(self, *_):
        for owner, name, value in reversed(self.before):
            setattr(owner, name, value)


@dataclass
class Child:
    """A process that begins as a copy of this one, so that imports cost nothing."""

    log: Path
    work: object
    process: int = 0
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.process = os.fork()
        if self.process == 0:
            os.dup2(os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
            sys.stderr = sys.stdout = os.fdopen(2, "w", buffering=1)
            status = 70
            try:
                self.work()
                status = 0
            except SystemExit as ended:
                status = ended.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)

    def wait(self):
        """Return its status, negative for a signal."""
        _, status = os.waitpid(self.process, 0)
        return os.waitstatus_to_exitcode(status)

    def alive(self):
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self, after):
        """Kill it some seconds after its beginning; returns whether it was still alive."""
        time.sleep(max(0.0, self.began + after - time.monotonic()))
        os.kill(self.process, signal.SIGKILL)
        status = self.wait()
        assert status in (0, -signal.SIGKILL), self.log.read_text()
        return status != 0
