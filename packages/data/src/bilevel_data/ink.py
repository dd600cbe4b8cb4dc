"""Dark ink on light paper, or bright ink on a dark ground: told from a picture's border."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["INKS", "Ink", "Pixels", "common_ink", "ink_of"]

Pixels: TypeAlias = NDArray[np.uint8]
Ink: TypeAlias = Literal["bright", "dark"]
INKS: tuple[Ink, ...] = ("bright", "dark")

# A drawing stands on an even ground that reaches its border; a photograph's border is uneven.
_EVEN, _EVEN_SHARE = 40, 0.8
# Ink is far from the ground, and covers less than most of the picture.
_APART, _LEAST_INK, _MOST_INK = 64, 0.004, 0.6
_LIGHT, _DARK = 150, 105
_MAJORITY = 0.6


def ink_of(image: Pixels) -> Ink | None:
    """The ink of a drawing, or None for what does not look like one.

    Args:
        image: `(H, W, C)` uint8.

    Cost: one pass over the pixels.
    """
    grey = image.mean(axis=-1)
    border = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    ground = float(np.median(border))
    even = float((np.abs(border - ground) <= _EVEN).mean())
    covered = float((np.abs(grey - ground) > _APART).mean())
    if even < _EVEN_SHARE or not _LEAST_INK <= covered <= _MOST_INK:
        return None
    return "dark" if ground >= _LIGHT else "bright" if ground <= _DARK else None


def common_ink(images: Iterable[Pixels]) -> Ink | None:
    """The ink of most of several images, or None where most of them are no drawings."""
    found = Counter(ink_of(image) for image in images)
    best = max(INKS, key=lambda ink: found[ink])
    return best if found[best] and found[best] >= _MAJORITY * found.total() else None
