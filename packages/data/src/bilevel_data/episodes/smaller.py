"""Smaller images for the first episodes of a training, which then costs less.

What an image becomes is a function of its pixels and its episode's number, equal on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from bilevel_data.dataset import pixels_of
from bilevel_data.episodes.episode import EpisodeBatch
from bilevel_data.episodes.loader import BatchSampler

__all__ = ["SmallerAtFirst", "shrunk"]


@final
@dataclass(frozen=True, kw_only=True)
class SmallerAtFirst:
    """A sampler whose first episodes have images of another size.

    Attributes:
        whole: makes the meta-batches.
        size: height and width of the smaller images.
        episodes: so many are smaller; a meta-batch of both kinds cannot be.
    """

    whole: BatchSampler
    size: int
    episodes: int

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Return episodes `first` … `first + count - 1`, all of one size."""
        batch = self.whole.batch(first, count)
        if first >= self.episodes:
            return batch
        return replace(
            batch,
            support=shrunk(pixels_of(batch.support), self.size),
            query=shrunk(pixels_of(batch.query), self.size),
        )


def shrunk(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return square images (…, height, width, channels) as (…, size, size, channels) by area.

    A pixel is the mean of the part of the image that it covers, with weights of 8 bits. Sums stay
    below 2**24, so that products in float32 are exact, in whatever order they are added.
    """
    weights = _weights(images.shape[-2], size)
    planes = np.moveaxis(images, -1, -3).astype(np.float32)
    total = weights @ planes @ weights.T
    rounded = np.floor((total + 2**15) / 2**16).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(rounded, -3, -1))


def _weights(length: int, size: int) -> NDArray[np.float32]:
    """Return how much of each old pixel is in each new one, (size, length), whole, of 256."""
    edges = np.arange(size + 1, dtype=np.int64) * length  # in parts of 1/size of an old pixel
    starts = np.arange(length, dtype=np.int64) * size
    shared = np.minimum(edges[1:, None], starts + size) - np.maximum(edges[:-1, None], starts)
    # Running sums are rounded, so that each row adds up to 256.
    sums = np.cumsum(np.maximum(shared, 0), axis=1) * 256
    rounded = (2 * sums + length) // (2 * length)
    return np.diff(rounded, axis=1, prepend=0).astype(np.float32)
