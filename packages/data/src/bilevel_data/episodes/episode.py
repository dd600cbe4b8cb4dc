"""What an episode is: its size, the images that it has by number, and as pixels."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from bilevel_data.dataset import Images
from bilevel_data.errors import DataError

__all__ = ["EpisodeBatch", "EpisodeIndices", "EpisodeSpec", "Integers"]

Integers = NDArray[np.int64]


@final
@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """The size of an episode.

    Attributes:
        way: classes an episode, ≥ 2.
        shot: support images a class, ≥ 1.
        query: query images a class, ≥ 1.

    Raises:
        DataError: a number is too small or not whole.
    """

    way: int
    shot: int
    query: int

    def __post_init__(self) -> None:
        for key, least in (("way", 2), ("shot", 1), ("query", 1)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise DataError(f"{key}: expected a whole number ≥ {least}, found {value!r}")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeIndices:
    """Which images an episode is made of.

    Attributes:
        classes: `(way,)` class numbers of the split; label n is `classes[n]`.
        rotations: `(way,)` quarter turns, counter-clockwise, of each of them.
        support: `(way, shot)` image numbers of the split.
        query: `(way, query)` image numbers of the split.
    """

    classes: Integers
    rotations: Integers
    support: Integers
    query: Integers


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeBatch:
    """Episodes as pixels, class by class.

    Attributes:
        support: `(count, way*shot, H, W, C)` uint8.
        query: `(count, way*query, H, W, C)` uint8.
        support_labels: `(count, way*shot)` int64 in 0 … way - 1.
        query_labels: `(count, way*query)` int64 in 0 … way - 1.
        classes: `(count, way)` int64 in 0 … `num_classes` - 1 of the sampler: label n is class
            `classes[i, n]` of the split, or 4 times that plus its quarter turns where rotated
            copies count.
    """

    support: Images
    query: Images
    support_labels: Integers
    query_labels: Integers
    classes: Integers
