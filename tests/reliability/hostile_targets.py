"""What is fuzzed: each reader of what somebody else made, as a function of the bytes of a file.

A target may refuse its input with a DataError or an InputError. Anything else that is raised, and a
result that contradicts itself, is a finding. Checksums are taken to match, because a stranger can
compute them, and so that what lies behind them is reached.
"""

import contextlib
import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from bilevel_apps.config import (
    dump_config,
    list_presets,
    load_config,
    load_preset,
    parse_config,
    parse_yaml,
)
from bilevel_apps.errors import InputError
from bilevel_apps.runs import checkpoint as checkpoint_module
from bilevel_apps.runs.record import read_record
from bilevel_data import DataError, SourceData, SourceSplit, load_source, open_store, write_store
from bilevel_data.files.file_tree import open_tree
from bilevel_data.sources.decode import read_picture
from bilevel_data.stores.hdf5 import headers as headers_module
from bilevel_data.stores.hdf5 import reader as layout_module

CORPUS = Path(__file__).parent / "corpus"
REFUSALS = (DataError, InputError)


class Matches:
    """A checksum that is equal to any other."""

    __hash__ = None

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False


@contextlib.contextmanager
def checksums_match():
    places = [
        (headers_module, "lookup3"),
        (layout_module, "fletcher32"),
        (checkpoint_module, "tensors_sha256"),
    ]
    kept = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, lambda *_: Matches())
    try:
        yield
    finally:
        for (module, name), function in zip(places, kept, strict=True):
            setattr(module, name, function)


def as_file(read):
    """Give a reader of files some bytes; it may refuse them."""

    @cache
    def path():
        return Path(tempfile.mkdtemp(prefix="bilevel-fuzz-")) / "input"

    def run(content):
        path().write_bytes(content)
        with checksums_match(), contextlib.suppress(*REFUSALS):
            read(path())

    return run


def store(path):
    found = open_store(path)
    for name in found.splits:
        split = found.load(name, verify=False)
        info = found.manifest.splits[name]
        assert split.images.shape == (info.images, *info.image_shape)
        assert split.offsets[-1] == info.images
        assert (np.diff(split.offsets) > 0).all()
        assert split.num_classes == len(info.class_names)


def checkpoint(path):
    found = checkpoint_module.load_checkpoint(path)
    record = read_record(found, path)
    assert record.step >= 0


def config(path):
    found = parse_config(load_config(path), str(path))
    assert parse_config(parse_yaml(dump_config(found), "again"), "again") == found


def archive(path):
    tree = open_tree(path, max_files=100)
    assert len(tree.names) <= 100
    with contextlib.suppress(*REFUSALS):
        for content in tree.read(tree.names, max_bytes=1 << 16):
            assert len(content) <= 1 << 16
    source = load_source("mini-imagenet", path)
    assert source.splits


def image(content):
    with patch.dict(os.environ, {"BILEVEL_MAX_PIXELS": "250000"}):
        for channels in (1, 3):
            with contextlib.suppress(*REFUSALS):
                picture = read_picture(content, "input", channels=channels)
                assert picture.mode == ("L" if channels == 1 else "RGB")
                assert picture.width * picture.height <= 250_000


@dataclass(frozen=True)
class Target:
    """What is fuzzed: `run(bytes)`, which raises if there is something to find, and good input."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def store_seeds():
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for count in (2, 3):
            rng = np.random.default_rng(count)
            split = SourceSplit(
                name="train",
                class_names=("a", "b"),
                class_sizes=(count, count),
                image_shape=(2, 2, 1),
                images=[rng.integers(0, 9, (count, 2, 2, 1), dtype=np.uint8) for _ in range(2)],
            )
            source = SourceData(
                name="n",
                licence="l",
                source="s",
                preprocessing="p",
                rotations_are_classes=False,
                splits=(split,),
            )
            path = Path(folder) / f"{count}.h5"
            write_store(path, source)
            found.append(path.read_bytes())
        return found


def checkpoint_seeds():
    import torch

    config = parse_config({"model": {"name": "c4l", "filters": 1}, "device": "cpu"}, "seed")
    environment = {"threads": 1, "device": "cpu", "python": "3", "torch": "2", "bilevel": "0"}
    record = {
        "step": 1,
        "best_accuracy": 0.5,
        "best_step": 1,
        "config": config.model_dump(mode="json"),
        "image_shape": [16, 16, 1],
        "preprocessing": "none",
        "environment": {**environment, "data": {"train": "0" * 64}},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed"
        tensors = {"model.log_lr": torch.zeros(())}
        given = checkpoint_module.Checkpoint(tensors=tensors, record=record)
        checkpoint_module.save_checkpoint(path, given)
        return [path.read_bytes()]


def config_seeds():
    import yaml

    presets = [yaml.safe_dump(load_preset(name)).encode() for name in list_presets()[:4]]
    return [*presets, b"--set", b"{a: &x [1, *x], <<: {b: !!int 1}}", b"train:\n  lr: 1e-3\n"]


def archive_seeds():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("train.csv", "filename,label\nn0.png,n\n")
        zipped.writestr("images/n0.png", pictures()[0])
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as zipped:
        zipped.writestr("x", b"y")
    return [file.getvalue(), stored.getvalue()]


def pictures():
    found = []
    for form, mode in [
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PNG", "RGBA"),
        ("PNG", "1"),
        ("JPEG", "L"),
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
    ]:
        file = io.BytesIO()
        Image.new(mode, (5, 4), 1).save(file, form)
        found.append(file.getvalue())
    return found


TARGETS = {
    "store": Target(as_file(store), store_seeds),
    "checkpoint": Target(as_file(checkpoint), checkpoint_seeds),
    "config": Target(as_file(config), config_seeds),
    "archive": Target(as_file(archive), archive_seeds),
    "image": Target(image, pictures),
}


def kept(target):
    """The kept inputs of a target."""
    return sorted((CORPUS / target).glob("*"))
