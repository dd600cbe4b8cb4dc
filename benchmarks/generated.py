"""Stores with the shapes of real data sets, for timing without the data.

A class is a random picture, and its images are that picture under noise, so that a network of fresh
weights tells classes apart better than chance, and worse than always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bilevel_data import Lazy, SourceData, SourceSplit, Store, open_store, write_store
from bilevel_data.dataset import Images

__all__ = ["generate", "store_with"]


def generate(
    path: Path, splits: dict[str, tuple[int, int]], shape: tuple[int, int, int], *, turned: bool
) -> Store:
    """Write and open a store.

    Args:
        path: where.
        splits: number of classes and images a class of each split.
        shape: of an image, (height, width, channels).
        turned: whether rotated copies count as classes.
    """
    data = SourceData(
        name="generated",
        licence="CC0",
        source="random numbers",
        preprocessing="none",
        rotations_are_classes=turned,
        splits=tuple(_split(name, *sizes, shape) for name, sizes in splits.items()),
    )
    write_store(path, data)
    return open_store(path)


def store_with(files: Sequence[Path], split: str, shape: tuple[int, int, int]) -> Store | None:
    """Return the first of the user's stores that has a split of images of this shape."""
    for store in map(open_store, files):
        info = store.manifest.splits.get(split)
        if info is not None and info.image_shape == shape:
            return store
    return None


def _split(name: str, classes: int, each: int, shape: tuple[int, int, int]) -> SourceSplit:
    return SourceSplit(
        name=name,
        class_names=tuple(f"{name} {c}" for c in range(classes)),
        class_sizes=(each,) * classes,
        image_shape=shape,
        images=Lazy(make=partial(_draw, len(name), classes, (each, *shape))),
    )


def _draw(seed: int, classes: int, shape: tuple[int, ...]) -> Iterator[Images]:
    rng = np.random.default_rng(seed)
    for _ in range(classes):
        picture = rng.integers(0, 256, shape[1:], dtype=np.uint8) // 4
        yield picture + rng.integers(0, 192, shape, dtype=np.uint8)
