"""Episodes as users of torch load them: a Dataset, a sampler of episodes in Python, a DataLoader.

Each image is an item of its own, made a float tensor in `__getitem__`, turned there if its class is
a rotated copy, and put together by the loader's own collation; a batch is an episode.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, final

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bilevel_data import EpisodeSpec, ImageSplit
from bilevel_meta.episodes import Episodes

__all__ = ["ImagesInMemory", "RowsOfFile", "meta_batches"]

Key: TypeAlias = tuple[int, int]
"""Number of an image, and its quarter turns."""


@final
class ImagesInMemory(Dataset[Tensor]):
    """The images of a split that is in memory."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __getitem__(self, key: Key) -> Tensor:
        """Return an image, (channels, height, width) in [0, 1]."""
        image, turns = key
        return _as_image(self.images[image], turns)


@final
class RowsOfFile(Dataset[Tensor]):
    """The rows of a plain HDF5 file; opened at the first use, so in each worker by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: h5py.Dataset | None = None

    def __getitem__(self, key: Key) -> Tensor:
        """Return an image, (channels, height, width) in [0, 1]."""
        if self.images is None:
            self.images = h5py.File(self.path, "r")["images"]
        image, turns = key
        return _as_image(self.images[image], turns)


@final
class EpisodeKeys(Sampler[list[Key]]):
    """Lists of an episode's images: the support images class by class, then the query images."""

    def __init__(self, split: ImageSplit, spec: EpisodeSpec, *, rotations: bool, count: int):
        self.spec, self.count = spec, count
        self.random = random.Random(0)
        turns = range(4) if rotations else range(1)
        self.classes = [(c, k) for c in range(split.num_classes) for k in turns]
        self.members = [
            range(int(split.offsets[c]), int(split.offsets[c + 1]))
            for c in range(split.num_classes)
        ]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[Key]]:
        shot, query = self.spec.shot, self.spec.query
        for _ in range(self.count):
            support: list[Key] = []
            others: list[Key] = []
            for c, turns in self.random.sample(self.classes, self.spec.way):
                drawn = self.random.sample(self.members[c], shot + query)
                support += [(image, turns) for image in drawn[:shot]]
                others += [(image, turns) for image in drawn[shot:]]
            yield support + others


def meta_batches(
    images: Dataset[Tensor],
    split: ImageSplit,
    spec: EpisodeSpec,
    *,
    rotations: bool,
    meta_batch: int,
    steps: int,
    workers: int,
    device: torch.device,
) -> Generator[Episodes]:
    """Yield meta-batches of so many episodes of a DataLoader."""
    keys = EpisodeKeys(split, spec, rotations=rotations, count=steps * meta_batch)
    loader = DataLoader(
        images, batch_sampler=keys, num_workers=workers, pin_memory=device.type == "cuda"
    )
    episodes = iter(loader)
    for _ in range(steps):
        yield _joined([next(episodes) for _ in range(meta_batch)], spec, device)


def _joined(episodes: Sequence[Tensor], spec: EpisodeSpec, device: torch.device) -> Episodes:
    images = torch.stack(tuple(episodes)).to(device)
    support = spec.way * spec.shot
    labels = torch.arange(spec.way, device=device).expand(len(images), spec.way)
    return Episodes(
        support=images[:, :support],
        query=images[:, support:],
        support_labels=labels.repeat_interleave(spec.shot, dim=1),
        query_labels=labels.repeat_interleave(spec.query, dim=1),
        way=spec.way,
    )


def _as_image(pixels: NDArray[np.uint8], turns: int) -> Tensor:
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().float().div(255)
    return torch.rot90(image, turns, (1, 2)) if turns else image
