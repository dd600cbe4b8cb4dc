"""Changes of training images that leave their classes alone.

What happens to an image is a function of the seed, the number of its episode and its place there,
and of nothing else: not of the batch, the process, or a resume. Pixels stay uint8, everything is
vectorised over the images, and only whole numbers and correctly rounded arithmetic are used: equal
on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bilevel_data import EpisodeBatch
from bilevel_data.dataset import pixels_of
from bilevel_data.episodes.counter_random import uniform, words
from bilevel_data.episodes.loader import BatchSampler

__all__ = ["Augmented", "Change", "affine_maps", "coloured", "flipped", "moved", "resampled"]

Change: TypeAlias = Literal["affine", "crop", "shift", "flip", "colour"]
Pixels: TypeAlias = NDArray[np.uint8]
Integers: TypeAlias = NDArray[np.int32]
Words: TypeAlias = NDArray[np.uint32]
Planes: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float64]

DRAWS = 8  # random numbers an image, used or not: so one change does not alter another
STRENGTH = 0.4  # brightness, contrast and saturation vary by as much in both directions
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
BLOCK = 170_000  # of colour values worked on at once: as floats they fit a cache
MAP_DRAWS = 4  # random numbers an image for `affine`, of a stream of their own
HALF_TURN = 0.08748866352592401  # tan(10°/2)
SHEAR, ZOOM = 0.3, 0.2
MAP_BLOCK = 32_000  # places worked on at once: half a dozen numbers each fit a cache
ONE = 1 << 16  # of a coordinate in fixed point: maps and places are whole numbers


@final
@dataclass(frozen=True, kw_only=True)
class Augmented:
    """A sampler whose images are changed at random, each by itself, in this order.

    affine: turned by up to 10°, sheared by up to 0.3 and scaled along both axes by 0.8 … 1.2 about
        its middle; the pixels at the edge go on outside: for drawings.
    crop: a window of the image with a black margin of a tenth of its size around it.
    shift: the same, where the margin repeats the pixels at the edge: for drawings.
    flip: left and right exchanged, in half of the images.
    colour: brightness, contrast and saturation times factors in [0.6, 1.4].

    Attributes:
        whole: makes the meta-batches.
        changes: which.
        seed: of the changes.

    Source: Meta-Learning with Differentiable Convex Optimization (Lee et al., 2019), section 4.1,
    for crop (8 pixels of 84), flip and colour; Siamese Neural Networks for One-shot Image
    Recognition (Koch et al., 2015), section 3.3, for the ranges of affine.
    """

    whole: BatchSampler
    changes: frozenset[Change]
    seed: int

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Return episodes `first` … `first + count - 1`, changed."""
        batch = self.whole.batch(first, count)
        support, query = batch.support.shape[1], batch.query.shape[1]
        shape, episodes = (count, support + query, DRAWS), range(first, first + count)
        draws = self._draws("bilevel-apps augmentation 1", shape, episodes)
        maps = self._draws("bilevel-data affine 1", (*shape[:2], MAP_DRAWS), episodes)
        return replace(
            batch,
            support=self._changed(pixels_of(batch.support), draws[:, :support], maps[:, :support]),
            query=self._changed(pixels_of(batch.query), draws[:, support:], maps[:, support:]),
        )

    def _draws(self, what: str, shape: tuple[int, int, int], episodes: range) -> Floats:
        key, each = f"{what}: seed {self.seed}", shape[1] * shape[2]
        bits = [words(key, each, stream=episode) for episode in episodes]
        return uniform(np.stack(bits)).reshape(shape)

    def _changed(self, images: Pixels, draws: Floats, maps: Floats) -> Pixels:
        x, u = images.reshape(-1, *images.shape[2:]), draws.reshape(-1, DRAWS)
        margin = max(1, x.shape[1] // 10)
        if "affine" in self.changes:
            x = resampled(x, affine_maps(2 * maps.reshape(-1, MAP_DRAWS) - 1))
        if "crop" in self.changes:
            x = moved(x, u[:, 0:2], margin, edge=False)
        if "shift" in self.changes:
            x = moved(x, u[:, 2:4], margin, edge=True)
        if "flip" in self.changes:
            x = flipped(x, u[:, 4] < 0.5)
        if "colour" in self.changes:
            x = coloured(x, 1 + STRENGTH * (2 * u[:, 5:8] - 1))
        return x.reshape(images.shape)


def affine_maps(strengths: Floats) -> Floats:
    """Return the matrices (n, 2, 2) that take places in the changed image to places in the old one.

    They are rows of (y, x): with the angle θ, the shear p and the factors a and b,

        [cos θ, sin θ; -sin θ, cos θ] [1, 0; p, 1] diag(1/a, 1/b)

    Args:
        strengths: (n, 4) in [-1, 1]: of the turn, the shear, and the two factors.
    """
    turn, shear, tall, wide = strengths.T
    t = HALF_TURN * turn  # the tangent of half the angle: sines differ from machine to machine
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    p = SHEAR * shear
    y, x = 1 / (1 + ZOOM * tall), 1 / (1 + ZOOM * wide)
    rows = ((cosine + sine * p) * y, sine * x), ((cosine * p - sine) * y, cosine * x)
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def resampled(images: Pixels, maps: Floats) -> Pixels:
    """Return images whose pixel at place u, from the middle, is the old one's at place M u.

    Bilinear between pixels, in whole numbers: places have 16 bits and weights 8 behind the point.
    Outside, the pixels at the edge go on.

    Args:
        images: (n, height, width, channels).
        maps: M, (n, 2, 2), rows and columns in the order (y, x).

    Cost: about 30 operations on whole numbers a pixel, beside one look-up.
    """
    n, height, width, channels = images.shape
    result = np.empty_like(images)
    block = max(1, MAP_BLOCK // (height * width))
    fixed = np.rint(maps * ONE).astype(np.int32)
    for first in range(0, n, block):
        part = slice(first, first + block)
        y = _places(fixed[part, 0], height, width, length=height)
        x = _places(fixed[part, 1], height, width, length=width)
        index = (y >> 16).astype(np.intp)
        index *= width
        index += x >> 16
        index += (np.arange(len(index)) * (height * width))[:, None, None]
        down, right = (((axis >> 8) & 255).astype(np.uint32) for axis in (y, x))
        for channel in range(channels):
            result[part, ..., channel] = _between(images[part, ..., channel], index, down, right)
    return result


def _places(rows: Integers, height: int, width: int, *, length: int) -> Integers:
    """Return where each pixel (n, height, width) comes from along an axis, in fixed point."""
    # Twice the distance from the middle is whole for even sizes too.
    down = np.arange(1 - height, height, 2, dtype=np.int32)
    right = np.arange(1 - width, width, 2, dtype=np.int32)
    along = rows[:, :1] * down + (length - 1) * ONE
    places: Integers = along[:, :, None] + (rows[:, 1:] * right)[:, None, :]
    places >>= 1
    np.minimum(places, (length - 1) * ONE, out=places)
    np.maximum(places, 0, out=places)
    return places


def _between(plane: Pixels, index: NDArray[np.intp], down: Words, right: Words) -> Words:
    """Return values of planes (n, height, width) between the pixel `index` and its neighbours.

    Args:
        plane: the images.
        index: the upper left one of four neighbours, (n, height, width).
        down: how far to go to the lower two, of 256.
        right: how far to go to the right-hand two, of 256.
    """
    padded = np.pad(plane, ((0, 0), (0, 1), (0, 1)), mode="edge").astype(np.uint32)
    # The upper pixel in the lower half of a number, the lower one in its upper half: looked up
    # together, and each half has room for its product with a weight.
    pairs: Words = padded[:, :-1] | padded[:, 1:] << np.uint32(16)
    four: Words = (pairs[:, :, :-1] | pairs[:, :, 1:] << np.uint32(8)).reshape(-1).take(index)
    left: Words = four & np.uint32(0x00FF00FF)
    four >>= 8
    four &= 0x00FF00FF
    four *= right
    left *= 256 - right
    left += four
    below = left >> 16
    below *= down
    left &= 0xFFFF
    left *= 256 - down
    left += below
    left += ONE // 2
    left >>= 16
    return left


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
