"""Changes of training images that leave their classes alone.

What happens to an image is a function of the seed, the number of its episode and its place there,
and of nothing else: not of the batch, the process, or a resume. Pixels stay uint8, everything is
vectorised over the images, and only correctly rounded arithmetic is used: equal on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bilevel_data import EpisodeBatch
from bilevel_data.episodes.counter_random import uniform, words
from bilevel_data.episodes.loader import BatchSampler

__all__ = ["Augmented", "Change", "coloured", "flipped", "moved"]

Change: TypeAlias = Literal["crop", "shift", "flip", "colour"]
Pixels: TypeAlias = NDArray[np.uint8]
Planes: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float64]

DRAWS = 8  # random numbers an image, used or not: so one change does not alter another
STRENGTH = 0.4  # brightness, contrast and saturation vary by as much in both directions
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
BLOCK = 170_000  # of colour values worked on at once: as floats they fit a cache


@final
@dataclass(frozen=True, kw_only=True)
class Augmented:
    """A sampler whose images are changed at random, each by itself, in this order.

    crop: a window of the image with a black margin of a tenth of its size around it.
    shift: the same, where the margin repeats the pixels at the edge: for drawings.
    flip: left and right exchanged, in half of the images.
    colour: brightness, contrast and saturation times factors in [0.6, 1.4].

    Attributes:
        whole: makes the meta-batches.
        changes: which.
        seed: of the changes.

    Source: Meta-Learning with Differentiable Convex Optimization (Lee et al., 2019), section 4.1,
    for crop (8 pixels of 84), flip and colour.
    """

    whole: BatchSampler
    changes: frozenset[Change]
    seed: int

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Return episodes `first` … `first + count - 1`, changed."""
        batch = self.whole.batch(first, count)
        support, query = batch.support.shape[1], batch.query.shape[1]
        key = f"bilevel-apps augmentation 1: seed {self.seed}"
        bits = [words(key, (support + query) * DRAWS, stream=first + i) for i in range(count)]
        draws = uniform(np.stack(bits)).reshape(count, support + query, DRAWS)
        return replace(
            batch,
            support=self._changed(batch.support, draws[:, :support]),
            query=self._changed(batch.query, draws[:, support:]),
        )

    def _changed(self, images: Pixels, draws: Floats) -> Pixels:
        x, u = images.reshape(-1, *images.shape[2:]), draws.reshape(-1, DRAWS)
        margin = max(1, x.shape[1] // 10)
        if "crop" in self.changes:
            x = moved(x, u[:, 0:2], margin, edge=False)
        if "shift" in self.changes:
            x = moved(x, u[:, 2:4], margin, edge=True)
        if "flip" in self.changes:
            x = flipped(x, u[:, 4] < 0.5)
        if "colour" in self.changes:
            x = coloured(x, 1 + STRENGTH * (2 * u[:, 5:8] - 1))
        return x.reshape(images.shape)


def moved(images: Pixels, draws: Floats, margin: int, *, edge: bool) -> Pixels:
    """Return a window of each image, of the image's size, after a margin was put around it.

    Args:
        images: (n, height, width, channels).
        draws: (n, 2) in [0, 1): where the window is, from top to bottom and from left to right.
        margin: pixels on each side.
        edge: the margin repeats the pixels at the edge; otherwise it is black.
    """
    n, height, width, channels = images.shape
    around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = np.pad(images, around, mode="edge" if edge else "constant")
    image, row, column, value = padded.strides
    places = 2 * margin + 1
    # Every window of every image, without a copy; rows of pixels lie one after the other.
    windows = as_strided(
        padded,
        (n, places, places, height, width * channels),
        (image, row, column, row, value),
        writeable=False,
    )
    top, left = (draws * places).astype(np.int64).T
    result: Pixels = windows[np.arange(n), top, left].reshape(images.shape)
    return result


def flipped(images: Pixels, chosen: NDArray[np.bool_]) -> Pixels:
    """Return images (n, height, width, channels), the chosen ones (n,) mirrored left to right."""
    result, mirrored = images.copy(), images[chosen]
    # A channel at a time: numpy moves runs of three bytes slower than single ones in a long row.
    for channel in range(images.shape[-1]):
        mirrored[..., channel] = mirrored[:, :, ::-1, channel].copy()
    result[chosen] = mirrored
    return result


def coloured(images: Pixels, factors: Floats) -> Pixels:
    """Return images with their brightness b, contrast c and saturation s changed, in this order.

    With g the grey value of a pixel x and m the mean of g over the image,

        x ← b (c s x + c (1 - s) g + (1 - c) m),

    rounded and cut to 0 … 255 once, at the end.

    Args:
        images: (n, height, width, channels); with one channel, saturation means nothing.
        factors: (n, 3): b, c and s, each ≥ 0.
    """
    n, *size = images.shape
    luma = np.array(LUMA if size[-1] == 3 else [1 / size[-1]] * size[-1], dtype=np.float32)
    b, c, s = factors.astype(np.float32).T[..., None, None]
    result = np.empty_like(images)
    block = max(1, BLOCK // int(np.prod(size)))
    for first in range(0, n, block):
        part = slice(first, first + block)
        planes = np.moveaxis(images[part], -1, 0).astype(np.float32, order="C")
        shade = np.multiply(planes[0], luma[0])
        for weight, plane in zip(luma[1:], planes[1:], strict=True):
            shade += weight * plane
        shade *= b[part] * c[part] * (1 - s[part])
        shade += b[part] * (1 - c[part]) * _mean_grey(planes, luma) + np.float32(0.5)
        planes *= b[part] * c[part] * s[part]
        planes += shade
        np.clip(planes, 0, 255, out=planes)
        result[part] = np.moveaxis(planes.astype(np.uint8), 0, -1)
    return result


def _mean_grey(planes: Planes, luma: Planes) -> Planes:
    """Return the mean grey value of each image of planes (channels, n, height, width), (n, 1, 1).

    Sums of whole numbers below 2**24 are exact in float32, whatever their order.
    """
    flat = planes.reshape(*planes.shape[:2], -1)
    pixels = flat.shape[2]
    exact = np.float32 if 255 * pixels < 2**24 else np.float64
    grey = (flat.sum(axis=2, dtype=exact).T * luma.astype(np.float64)).sum(axis=1) / pixels
    mean: Planes = grey.astype(np.float32)[:, None, None]
    return mean
