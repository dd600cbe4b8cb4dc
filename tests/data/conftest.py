"""Small data sets for the tests of bilevel_data, and the real ones where they are there."""

from pathlib import Path

import numpy as np
import pytest

from bilevel_data import ImageSplit, SourceData, SourceSplit, write_store

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def make_source_split(name="train", sizes=(3, 4, 2), shape=(4, 4, 1), seed=0):
    rng = np.random.default_rng([seed, len(name)])
    return SourceSplit(
        name=name,
        class_names=tuple(f"{name}-{c:03d}" for c in range(len(sizes))),
        class_sizes=tuple(sizes),
        image_shape=shape,
        images=[rng.integers(0, 256, (n, *shape), dtype=np.uint8) for n in sizes],
    )


def make_source(*splits, **changes):
    fields = {
        "name": "tiny",
        "licence": "CC0",
        "source": "made by a test",
        "preprocessing": "none",
        "rotations_are_classes": True,
        "splits": splits or (make_source_split(), make_source_split("test", (2, 2))),
    }
    return SourceData(**{**fields, **changes})


def make_image_split(sizes=(5,) * 8, shape=(4, 4, 1), name="train"):
    """Every image has its own number in its first two pixels, class and index in the next."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    images = np.zeros((offsets[-1], *shape), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(offsets[-1]), 256)
    images[:, 1, 0, 0] = np.repeat(np.arange(len(sizes)), sizes) % 256
    return ImageSplit(
        name=name,
        images=images,
        offsets=offsets,
        class_names=tuple(f"c{c:04d}" for c in range(len(sizes))),
        sha256="0" * 64,
    )


@pytest.fixture(scope="session")
def source_split():
    return make_source_split


@pytest.fixture(scope="session")
def source():
    return make_source


@pytest.fixture(scope="session")
def image_split():
    return make_image_split


@pytest.fixture
def store_file(tmp_path):
    path = tmp_path / "tiny.h5"
    write_store(path, make_source())
    return path


@pytest.fixture(scope="session")
def real_omniglot():
    path = REAL / "omniglot"
    if not path.is_dir():
        pytest.skip(f"needs the two zips of Omniglot in {path}")
    return path


@pytest.fixture(scope="session")
def real_mini_imagenet():
    path = REAL / "mini-imagenet-train-val.zip"
    if not path.is_file():
        pytest.skip(f"needs the zip of mini-ImageNet at {path}")
    return path
