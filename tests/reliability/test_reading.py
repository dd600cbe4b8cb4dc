"""Raw files that cannot be read: one line with the file and the remedy, or the same store."""

import errno
import io
import itertools
import os
import zipfile
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bilevel_apps.cli import data
from reliability.faulty import Disk, ExitPatches
from reliability.test_faults import attempt

omniglot = import_module("bilevel_data.sources.omniglot")  # not the function of that name

KINDS = ("stat", "list", "open", "read")
ERRORS = {
    "stat": (errno.EIO, errno.EACCES),
    "list": (errno.EIO, errno.EACCES, errno.ENOENT),
    "open": (errno.EIO, errno.EACCES, errno.ENOENT),
    "read": (errno.EIO,),
}
REMEDIES = ("make it readable", "restore it", "replace or remove it", "fetch it again")


class Source(io.FileIO):
    """A file on such a disk, whose reading fails."""

    def __init__(self, disk, path):
        disk.call("open", path)
        super().__init__(path)
        self.disk, self.path = disk, path

    def readinto(self, buffer):
        self.disk.call("read", self.path)
        return super().readinto(buffer)

    def readall(self):
        self.disk.call("read", self.path)
        return super().readall()


def reads_through(patch, disk):
    """Put a disk under what Python asks of files that are there already."""
    real = {name: getattr(os, name) for name in ("stat", "listdir", "scandir")}
    opened = io.open

    def open_(file, mode="r", *arguments, **options):
        if mode == "rb" and disk.holds(file):
            return io.BufferedReader(Source(disk, file))
        return opened(file, mode, *arguments, **options)

    def counted(kind, name):
        def call(path=".", *arguments, **options):
            disk.call(kind, path)
            return real[name](path, *arguments, **options)

        return call

    patch(io, "open", open_)
    for name, kind in (("stat", "stat"), ("listdir", "list"), ("scandir", "list")):
        patch(os, name, counted(kind, name))


def draw(path, size=105, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-4:]).encode())  # no picture is in two places
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def folder(raw):
    for name, k in itertools.product("abc", range(2)):
        draw(raw / name / f"{k}.png", 8)
    return ["folder", "--source", raw, "--option", "size=8"]


def mini_imagenet(raw):
    names = [f"n{c}{k}.png" for c in range(2) for k in range(2)]
    for name in names:
        draw(raw / "images" / name, 8)
    rows = "".join(f"{name},{name[:2]}\n" for name in names)
    (raw / "train.csv").write_text(f"filename,label\n{rows}")
    return ["mini-imagenet", "--source", raw]


def mini_imagenet_zip(raw):
    mini_imagenet(raw)
    pack(raw, raw / "mini.zip")
    return ["mini-imagenet", "--source", raw / "mini.zip"]


def omniglot_folder(raw):
    for half, c, k in itertools.product(omniglot.OFFICIAL, range(2), range(2)):
        draw(raw / half.name / f"Script-{half.name}" / f"character{c}" / f"{k}.png", mode="1")
    return ["omniglot", "--source", raw]


def omniglot_zips(raw):
    omniglot_folder(raw)
    for half in omniglot.OFFICIAL:
        pack(raw / half.name, raw / f"{half.name}.zip", half.name)
    return ["omniglot", "--source", raw]


def pack(top, path, above=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(top.rglob("*")):
            if file.is_file() and file != path:
                archive.write(file, Path(above) / file.relative_to(top))


@pytest.fixture
def small_omniglot(monkeypatch):
    """Two characters a half, dealt out in the order of their names."""
    halves = [
        omniglot.Half(name=half.name, classes=2, drawings=2, md5=half.md5)
        for half in omniglot.OFFICIAL
    ]
    monkeypatch.setattr(omniglot, "OFFICIAL", tuple(halves))
    deal = {"santoro": lambda names: {"train": tuple(names)}}
    monkeypatch.setattr(omniglot, "OMNIGLOT_SPLITS", deal)


SOURCES = (folder, mini_imagenet, mini_imagenet_zip, omniglot_folder, omniglot_zips)


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_each_read_that_fails(tmp_path, small_omniglot, make):
    """Of the folder of raw files and of all that is in it, in turn."""
    out = tmp_path / "out"
    words = ["prepare", *make(tmp_path / "raw"), "--out", out / "own.h5", "--overwrite"]

    def run(disk):
        with ExitPatches() as patch:
            reads_through(patch, disk)
            return attempt(data.main, words)

    whole = Disk(tmp_path / "raw")
    status, said = run(whole)
    assert (status, [line for line in said if "fewer than 5 classes" not in line]) == (0, [])
    assert all(whole.done[kind] for kind in ("stat", "open", "read"))
    good = (out / "own.h5").read_bytes()
    for kind in KINDS:
        first = 2 if kind == "stat" else 1  # typer looks first, and leaves an error to us
        for at, error in itertools.product(range(first, whole.done[kind] + 1), ERRORS[kind]):
            disk = Disk(tmp_path / "raw", kind=kind, at=at, error=error)
            status, said = run(disk)
            assert disk.failed == 1
            if status == 0:  # a picture that was looked at for its ink, and read again later
                assert (out / "own.h5").read_bytes() == good
                continue
            assert (status, len(said)) == (2, 1), (kind, at, said)
            (line,) = said
            assert line.startswith("error: ")
            assert str(tmp_path / "raw") in line
            assert any(remedy in line for remedy in REMEDIES), line
            assert (out / "own.h5").read_bytes() == good
            assert sorted(p.name for p in out.iterdir()) == ["own.h5", "own.h5.sha256"]
