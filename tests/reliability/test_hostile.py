"""Hostile files: one line that names the file and the remedy, soon, and nothing is harmed."""

import os
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel_apps.config import parse_config
from bilevel_apps.training.loop import train
from bilevel_data import SourceData, SourceSplit, write_store
from bilevel_data.sources.torchvision.library import import_datasets
from reliability.hostile import CASES, Place
from reliability.own_memory import own_memory

SECONDS, BYTES = 5, 1 << 30
# What a remedy begins with, in the words of the messages.
REMEDY = re.compile(
    r"\b(add|begin|choose|convert|correct|delete|did you mean|expected|fetch|fill|give|"
    r"input should be|install|keep|known keys|make|pack|prepare|remove|rename|replace|restore|"
    r"reinstall|retry|save|set|use|write)\b"
)
NAMES = {
    "data": "data",
    "train": "train",
    "eval": "evaluate",
    "predict": "predict",
    "embed": "embed",
    "export": "export",
    "runs": "runs",
}


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A store, and a run on it; what takes seconds to import is imported here."""
    import_datasets()
    rng, base = np.random.default_rng(0), tmp_path_factory.mktemp("good")
    splits = tuple(
        SourceSplit(
            name=name,
            class_names=tuple(f"{name}-{c}" for c in range(6)),
            class_sizes=(6,) * 6,
            image_shape=(16, 16, 1),
            images=[rng.integers(0, 256, (6, 16, 16, 1), dtype=np.uint8) for _ in range(6)],
        )
        for name in ("train", "val", "test")
    )
    source = SourceData(
        name="tiny",
        licence="CC0",
        source="made by a test",
        preprocessing="none",
        rotations_are_classes=False,
        splits=splits,
    )
    write_store(base / "tiny.h5", source)
    config = {
        "threads": 1,
        "device": "cpu",
        "data": str(base / "tiny.h5"),
        "episode": {"way": 3, "shot": 1, "query": 2},
        "model": {"filters": 4},
        "train": {"steps": 2, "meta_batch": 1, "validate_every": 1, "validate_episodes": 2},
        "tracking": {"enabled": False},
    }
    threads = torch.get_num_threads()
    train(parse_config(config, "test"), base / "run", resume=False)
    torch.set_num_threads(threads)
    return base


@pytest.fixture
def place(tmp_path, good, monkeypatch):
    """A sandbox: the hostile file, the place for results, a home and a folder to work in."""
    for name in ("hostile", "out", "home", "work", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for variable, name in {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "home"}.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
    return Place(
        folder=tmp_path / "hostile",
        out=tmp_path / "out",
        store=good / "tiny.h5",
        run=good / "run",
        canary=tmp_path / "canary",
    )


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process; returns its status, stdout and stderr."""
    import importlib

    def run(name, *arguments):
        module = importlib.import_module(f"bilevel_apps.cli.{NAMES[name]}")
        monkeypatch.setattr(sys, "argv", [f"bilevel-{name}", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            module.main()
        return ended.value.code, *capsys.readouterr()

    return run


def contents(place):
    """All that a command must leave alone: what each file is, and the bytes of the plain ones."""
    base = place.folder.parent
    roots = (place.folder, base / "work", base / "home", base / "tmp", place.store.parent)
    found = {str(entry): _state(entry) for entry in base.iterdir()}
    for root in roots:
        found |= {os.fsdecode(os.fsencode(entry)): _state(entry) for entry in root.rglob("*")}
    return {name: state for name, state in found.items() if ".lock" not in name}


def _state(entry):
    status = entry.lstat()
    plain = entry.is_file() and not entry.is_symlink() and status.st_size < 1 << 26
    return status.st_mode, status.st_size, sha256(entry.read_bytes()).digest() if plain else None


def peak(*, reset=False):
    """The most memory that this process had since the last reset, where the system tells."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def check_line(case, arguments, status, out, err):
    lines = err.splitlines()
    assert status in (1, 2), (status, out, err)
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    own = [a for a in arguments if "/hostile/" in a or a.endswith("hostile")]
    named = case.named or Path(own[-1]).name
    assert named in lines[0], (named, lines[0])
    assert REMEDY.search(lines[0]), lines[0]
    assert lines[0].isprintable()
    assert len(lines[0]) < 1000


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_refused(place, command, case):
    name, *arguments = case.make(place)
    before = contents(place)
    had = peak(reset=True)
    begin = time.process_time()
    status, out, err = command(name, *arguments)
    seconds = time.process_time() - begin
    check_line(case, arguments, status, out, err)
    assert seconds < SECONDS
    assert peak() - had < BYTES / 2  # beside what all of the tests before have left in memory
    assert not place.canary.exists()
    assert contents(place) == before
    left = [entry for entry in place.out.rglob("*") if entry.suffix in (".h5", ".safetensors")]
    assert left == []


def test_there_are_enough():
    kinds = Counter(case.kind for case in CASES)
    assert len(kinds) >= 12
    assert len(CASES) >= 60
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)


SAMPLE = {
    "store metadata: no_chunk",
    "store bytes: a terabyte of nothing",
    "checkpoint record: huge layer",
    "settings: merge bomb",
    "zip: a million members",
    "picture: prepare, bomb.png",
    "payload: checkpoint, torch_saved",
    "payload: lone checkpoint, torch_saved",
    "payload: store, pickled",
    "cannot be written: pictures, below a file",
}


@pytest.mark.process
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if f"{case.kind}: {case.name}" in SAMPLE],
    ids=lambda case: f"{case.kind}: {case.name}",
)
def test_refused_by_a_process_of_its_own(place, case):
    """The whole command, with the time that Python and its imports take, and all of its memory."""
    name, *arguments = case.make(place)
    module = f"bilevel_apps.cli.{NAMES[name]}"
    script = (
        "import runpy, resource, sys; code = 0\n"
        f"sys.argv = ['bilevel-{name}', *sys.argv[1:]]\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as ended: code = ended.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stdout)\n"
        "raise SystemExit(code)"
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        own_memory([sys.executable, "-c", script, *arguments]),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    check_line(case, arguments, done.returncode, done.stdout, done.stderr)
    assert 1024 * int(done.stdout.splitlines()[-1]) < BYTES
    assert seconds < SECONDS  # of a processor, imports included
    assert not place.canary.exists()
