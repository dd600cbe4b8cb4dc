"""A full or broken disk costs one line and status 1; what was good before still loads.

The short form fails some of the operations, the nightly one all of them, and there Linux itself
fails the system calls of the real commands, with strace.
"""

import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from apps.conftest import merge, source
from bilevel_apps.cli import data, train
from bilevel_apps.config import parse_config
from bilevel_apps.errors import RunError
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.training.loop import train as run_training
from bilevel_data import open_store, write_store
from reliability.faulty import ERRORS, KINDS, Disk, installed

CLASSES = {"train": 4, "val": 3, "test": 3}
SETTINGS = {
    "threads": 1,
    "device": "cpu",
    "episode": {"way": 2, "shot": 1, "query": 2},
    "model": {"filters": 2},
    "train": {
        "steps": 4,
        "meta_batch": 1,
        "validate_every": 2,
        "validate_episodes": 2,
        "checkpoint_every": 1,
    },
    "tracking": {"enabled": False},
}


@dataclass(frozen=True)
class Work:
    """A command whose disk fails.

    Attributes:
        main: the command, which reads `sys.argv`.
        words: its arguments.
        folder: what it writes to.
        prepare: makes that folder as it is before.
        check: looks at the folder after the command has ended with a status.
    """

    main: Callable[[], None]
    words: tuple
    folder: Path
    prepare: Callable[[], None]
    check: Callable[[int], None]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures to make a store of, a store, and a configuration to train with."""
    place = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(0)
    for c, i in itertools.product(range(32), range(2)):
        path = place / "pictures" / f"class-{c}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    write_store(place / "tiny.h5", source(classes=CLASSES))
    settings = SETTINGS | {"data": str(place / "tiny.h5")}
    (place / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return place


@pytest.fixture(scope="module")
def building(place):
    """Replacing a store of other pictures."""
    folder = place / "building"
    old = place / "old.h5"
    write_store(old, source(size=8, classes={"train": 3}))
    options = ("size=8", "channels=1")
    pictures = ("--source", place / "pictures", *(w for o in options for w in ("--option", o)))
    words = ("prepare", "folder", *pictures, "--out", folder / "own.h5", "--overwrite")

    def prepare():
        folder.mkdir()
        for suffix in ("", ".sha256"):
            text = Path(f"{old}{suffix}").read_bytes().replace(b"old.h5", b"own.h5")
            (folder / f"own.h5{suffix}").write_bytes(text)

    prepare()
    assert attempt(data.main, words) == (0, [])
    new = (folder / "own.h5").read_bytes()
    shutil.rmtree(folder)

    def check(status):
        found = (folder / "own.h5").read_bytes()
        assert found in ({new} if status == 0 else {new, old.read_bytes()})
        store = open_store(folder / "own.h5")
        assert all(len(store.load(name).images) for name in store.splits)
        assert {p.name for p in folder.iterdir()} == {"own.h5", "own.h5.sha256"}

    return Work(main=data.main, words=words, folder=folder, prepare=prepare, check=check)


@pytest.fixture(scope="module")
def training(place):
    """Resuming a run that was stopped half-way."""
    folder, begun, whole = (place / name for name in ("run", "begun", "whole"))
    settings = merge(SETTINGS, {"data": str(place / "tiny.h5")})
    run_training(parse_config(settings, "test"), whole, resume=False)
    expected = checkpoints(whole)
    half_way(settings, begun)

    def prepare():
        shutil.copytree(begun, folder)

    def check(status):
        names = {p.name for p in folder.iterdir()}
        assert names == {"config.yaml", "last.safetensors", "best.safetensors", ".lock"}
        steps = {
            name: load_checkpoint(folder / name).record["step"]
            for name in ("last.safetensors", "best.safetensors")
        }
        assert steps["last.safetensors"] >= 2
        if status != 0:
            run_training(parse_config(settings, "test"), folder, resume=True)
        assert checkpoints(folder) == expected

    words = (place / "tiny.yaml", "--out", folder, "--resume")
    return Work(main=train.main, words=words, folder=folder, prepare=prepare, check=check)


def half_way(settings, folder):
    """Leave what a run leaves whose disk failed when its third hyper-iteration was saved."""
    with installed(Disk(folder, kind="rename", at=5)), pytest.raises(RunError):
        run_training(parse_config(settings, "test"), folder, resume=False)
    assert load_checkpoint(folder / "last.safetensors").record["step"] == 2


def checkpoints(folder):
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("last", "best")}


def attempt(main, words):
    """Run a command in this process; returns its status, and its errors and warnings."""
    argv, err, out = sys.argv, sys.stderr, sys.stdout
    sys.argv, sys.stderr, sys.stdout = ["bilevel", *map(str, words)], io.StringIO(), io.StringIO()
    try:
        with pytest.raises(SystemExit) as ended:
            main()
        said = sys.stderr.getvalue().splitlines()
    finally:
        sys.argv, sys.stderr, sys.stdout = argv, err, out
    return ended.value.code, [line for line in said if re.search("^error|^warning|Error|Tr", line)]


def calls(work):
    """How often the command does what can fail."""
    work.prepare()
    with installed(Disk(work.folder)) as disk:
        assert attempt(work.main, work.words)[0] == 0
    work.check(0)
    shutil.rmtree(work.folder)
    return disk.done


def fail(work, disk):
    """Run the command on a disk that fails; returns its status."""
    work.prepare()
    try:
        with installed(disk):
            status, said = attempt(work.main, work.words)
        assert disk.failed
        assert status in (0, 1), said
        assert_one_line(status, said, os.strerror(disk.error))
        work.check(status)
    finally:
        shutil.rmtree(work.folder)
    return status


def assert_one_line(status, said, reason):
    if status == 0:
        assert said == []
    else:
        (line,) = said
        assert line.startswith("error: ")
        assert reason in line


def faults(done):
    """Every fault: the kind, its number, how it fails, and whether it stays so."""
    for kind in KINDS:
        for at in range(1, done[kind] + 1):
            for error, stays in itertools.product(ERRORS.values(), (False, True)):
                yield kind, at, error, stays


@pytest.mark.parametrize("name", ["building", "training"])
@pytest.mark.parametrize(
    "every", [pytest.param(7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.nightly)]
)
def test_each_operation_of_a_failing_disk(request, name, every):
    work = request.getfixturevalue(name)
    done = calls(work)
    assert all(done[kind] > 0 for kind in ("open", "write", "fsync", "rename"))
    statuses = []
    for kind, at, error, stays in itertools.islice(faults(done), 0, None, every):
        disk = Disk(work.folder, kind=kind, at=at, error=error, stays=stays)
        statuses.append(fail(work, disk))
        # A folder that is there already does not have to be made.
        assert statuses[-1] == 1 or kind == "mkdir"
    print(f"{name}: {len(statuses)} faults of {sum(done.values())} operations {dict(done)}")


CALLS = ("openat", "write", "pwrite64", "ftruncate", "fsync", "rename", "mkdir")


def traced(work, *options):
    """Run the command in a child that strace follows; returns its status and its errors."""
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            answer = attempt(work.main, work.words)
        except BaseException as error:
            answer = -1, [repr(error)]
        there.sendall(json.dumps(answer).encode())  # not by a write
        os._exit(0)
    there.close()
    try:
        os.waitpid(child, os.WUNTRACED)
        words = ["strace", "-f", "-y", "-o", str(work.folder.with_name("trace")), "-p", str(child)]
        with subprocess.Popen([*words, *options], stderr=subprocess.DEVNULL) as strace:
            while follower(child) == 0 and strace.poll() is None:
                time.sleep(0.001)
            assert strace.poll() is None, "strace may not attach to a process here"
            os.kill(child, signal.SIGCONT)
            _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(status) == 0
    with here:
        return json.loads(b"".join(iter(lambda: here.recv(65536), b"")))


def follower(process):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid"))


def real_calls(work):
    """The numbers, among calls of one name in one thread, of those that touch the folder."""
    work.prepare()
    assert traced(work, "-e", f"trace={','.join(CALLS)}") == [0, []]
    work.check(0)
    shutil.rmtree(work.folder)
    seen, found = Counter(), set()
    for line in work.folder.with_name("trace").read_text().splitlines():
        thread, call = line.split(maxsplit=1)
        name = call.partition("(")[0]
        seen[thread, name] += 1
        reads = name == "openat" and not re.search("O_CREAT|O_WRONLY|O_RDWR", call)
        if name in CALLS and f"{work.folder}/" in call and not reads:
            found.add((name, seen[thread, name]))
    return sorted(found)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("name", ["building", "training"])
def test_each_system_call_that_linux_fails(request, name):
    work = request.getfixturevalue(name)
    found = real_calls(work)
    assert {"openat", "write", "fsync", "rename"} <= {call for call, _ in found}
    statuses = Counter()
    for (call, at), error, later in itertools.product(found, ("ENOSPC", "EIO"), ("", "+")):
        work.prepare()
        try:
            fault = f"inject={call}:error={error}:when={at}{later}"
            status, said = traced(work, "-e", f"trace={call}", "-e", fault)
            assert_one_line(status, said, "")
            work.check(status)
        finally:
            shutil.rmtree(work.folder)
        unread = status == 2 and "cannot read" in said[0]  # the fault met an input
        assert status == 1 or (call == "openat" and unread) or call == "mkdir", (fault, said)
        statuses[call] += 1
    print(f"{name}: {sum(statuses.values())} faults: {dict(statuses)}")


@pytest.mark.process
@pytest.mark.parametrize("size", [100, 3000])
def test_the_command_on_a_disk_that_is_full(building, size):
    """A limit on the size of files, which Linux and HDF5's end of the process feel too."""
    building.prepare()
    limited = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({size}, {size}))"
    command = f"{limited}; from bilevel_apps.cli.data import main; main()"
    words = [sys.executable, "-c", command, *map(str, building.words)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert line == f"error: {building.folder}/own.h5: cannot write the store (File too large)"
    assert (done.returncode, done.stdout) == (1, "")
    building.check(1)
    shutil.rmtree(building.folder)
