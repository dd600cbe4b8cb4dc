"""Episodes of any way and any number of pictures, and episodes of several splits in one stream.

Both work in blocks of episodes: those of a block have one way, one number of support images for
each label, and one split, so that they are plain tensors without padding. A block of one gives
every episode its own. What a block is depends on the seed and the block's number alone.

Reference:
    Meta-Dataset: a dataset of datasets for learning to learn from few examples (Triantafillou et
        al., 2020), section 3.1: episodes whose way and shots vary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from bilevel_data.dataset import ImageSplit
from bilevel_data.episodes.counter_random import uniform, words
from bilevel_data.episodes.episode import EpisodeBatch, EpisodeSpec
from bilevel_data.episodes.loader import BatchSampler
from bilevel_data.episodes.sampler import EpisodeSampler
from bilevel_data.errors import DataError

__all__ = ["MixedSampler", "VariedSampler", "VariedSpec"]

Range = tuple[int, int]


@final
@dataclass(frozen=True, kw_only=True)
class VariedSpec:
    """The sizes that episodes may have, each as (lowest, highest), both included.

    Attributes:
        way: classes an episode, ≥ 2.
        shot: support images a class, ≥ 1.
        query: query images a class, ≥ 1.
        uneven: whether each class of an episode has its own number of support images.

    Raises:
        DataError: a number is too small or not whole, or a range is empty.
    """

    way: Range
    shot: Range
    query: int
    uneven: bool = True

    def __post_init__(self) -> None:
        for key in ("way", "shot"):
            low, high = getattr(self, key)
            EpisodeSpec(**{"way": 2, "shot": 1, "query": self.query} | {key: low})
            EpisodeSpec(**{"way": 2, "shot": 1, "query": self.query} | {key: high})
            if low > high:
                raise DataError(f"{key}: expected (lowest, highest), found {(low, high)}")


@final
@dataclass(frozen=True, eq=False)
class VariedSampler:
    """Draws episodes whose way and numbers of support images vary from block to block.

    Way and numbers are uniform in their ranges. Episode i depends on the seed, i, the specification
    and the size of a block, as an `EpisodeSampler`'s does on its own.

    Attributes:
        split: the images.
        spec: what sizes an episode may have.
        seed: any whole number.
        rotations: as for `EpisodeSampler`.
        overlap: as for `EpisodeSampler`.
        block: episodes of one size, ≥ 1, such as those of a meta-batch.

    Raises:
        DataError: the largest episode does not fit the split, or `block` is too small.
    """

    split: ImageSplit
    spec: VariedSpec
    seed: int = field(kw_only=True)
    rotations: bool = field(default=False, kw_only=True)
    overlap: bool = field(default=False, kw_only=True)
    block: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        _check_block(self.block)
        self._of(EpisodeSpec(way=self.spec.way[1], shot=self.spec.shot[1], query=self.spec.query))

    def shots(self, episode: int) -> NDArray[np.int64]:
        """Support images of each label of an episode, `(way,)` int64."""
        spec, most = self.spec, self.spec.way[1]
        drawn = uniform(words(self._key(), 1 + most, stream=episode // self.block))
        way = spec.way[0] + int(drawn[0] * (spec.way[1] - spec.way[0] + 1))
        each = drawn[1 : 1 + way] if spec.uneven else np.repeat(drawn[1], way)
        low, high = spec.shot
        return low + (each * (high - low + 1)).astype(np.int64)

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Episodes `first` … `first + count - 1`, all of one block.

        Their support holds `shots(first)[n]` images of label n, label after label.

        Raises:
            DataError: a number is out of range, or the episodes are of two blocks.
        """
        _check_one_block(first, count, self.block)
        shots = self.shots(first)
        way, most = len(shots), int(shots.max())
        whole = self._of(EpisodeSpec(way=way, shot=most, query=self.spec.query))
        drawn = whole.batch(first, count)
        kept = (np.arange(most) < shots[:, None]).reshape(-1)
        return replace(
            drawn, support=drawn.support[:, kept], support_labels=drawn.support_labels[:, kept]
        )

    def _of(self, spec: EpisodeSpec) -> EpisodeSampler:
        return EpisodeSampler(
            self.split, spec, seed=self.seed, rotations=self.rotations, overlap=self.overlap
        )

    def _key(self) -> str:
        spec = self.spec
        return (
            f"bilevel-data sizes 1: seed {self.seed} way {spec.way} shot {spec.shot} "
            f"query {spec.query} uneven {int(spec.uneven)} split {self.split.name}"
        )


@final
@dataclass(frozen=True, eq=False)
class MixedSampler:
    """Draws each block of episodes from one of several samplers, by weight.

    Their images must have one shape, if they are for one network.

    Attributes:
        samplers: such as one for each of several stores; blocks of theirs must fit into `block`.
        weights: how often each is drawn, relative to the others, > 0.
        seed: any whole number.
        block: episodes that are drawn from one, ≥ 1, such as those of a meta-batch.

    Raises:
        DataError: no samplers, another number of weights, or one that is not > 0 and finite.
    """

    samplers: Sequence[BatchSampler]
    weights: Sequence[float]
    seed: int = field(kw_only=True)
    block: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        _check_block(self.block)
        weights = np.asarray(self.weights, dtype=np.float64)
        good = bool((weights > 0).all() and np.isfinite(weights).all())
        if not self.samplers or weights.shape != (len(self.samplers),) or not good:
            raise DataError(
                f"weights: expected one number > 0 for each of {len(self.samplers)} samplers, "
                f"found {list(self.weights)}"
            )

    def source(self, episode: int) -> int:
        """Which of the samplers an episode is from."""
        key = f"bilevel-data mixture 1: seed {self.seed}"
        drawn = float(uniform(words(key, 1, stream=episode // self.block))[0])
        ends = np.cumsum(np.asarray(self.weights, dtype=np.float64))
        return min(int(np.searchsorted(ends, drawn * ends[-1], side="right")), len(ends) - 1)

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Episodes `first` … `first + count - 1`, all of one block.

        Raises:
            DataError: a number is out of range, or the episodes are of two blocks.
        """
        _check_one_block(first, count, self.block)
        return self.samplers[self.source(first)].batch(first, count)


def _check_block(block: object) -> None:
    if type(block) is not int or block < 1:
        raise DataError(f"block: expected a whole number ≥ 1, found {block!r}")


def _check_one_block(first: int, count: int, block: int) -> None:
    if first < 0 or count < 1 or first // block != (first + count - 1) // block:
        raise DataError(
            f"episodes {first} … {first + count - 1}: expected some of one block of {block}: ask "
            "for fewer, or make the blocks those of a meta-batch"
        )
