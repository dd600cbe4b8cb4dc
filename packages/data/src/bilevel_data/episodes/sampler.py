"""Episodes: few-shot tasks drawn from a split, each a pure function of its number.

Episode i depends on the seed, i, way, shot, query, rotations, the name of the split and its class
sizes, and on nothing else: not on the batch it is drawn in, the process, or what was drawn before.
"""

from dataclasses import dataclass, field
from typing import final

import numpy as np

from bilevel_data.dataset import Images, ImageSplit
from bilevel_data.episodes.counter_random import choose, words
from bilevel_data.episodes.episode import EpisodeBatch, EpisodeIndices, EpisodeSpec, Integers
from bilevel_data.episodes.loader import EpisodeLoader
from bilevel_data.errors import DataError

__all__ = ["EpisodeSampler"]


@final
@dataclass(frozen=True, eq=False)
class EpisodeSampler:
    """Draws episodes from a split.

    Classes are drawn uniformly without replacement, then the images of each; support and query
    never share an image, unless `overlap` says so.

    Attributes:
        split: the images.
        spec: size of an episode.
        seed: any whole number; another seed gives unrelated episodes.
        rotations: whether each class counts four times, rotated by 0°, 90°, 180° and 270°. Two
            rotations of one class may then meet in an episode.
        overlap: whether the query images are drawn from all of a class's images, those of its
            support set among them, as by the loader that the paper's authors released: of
            classes of n images `shot / n` of the queries are then support images on average, and
            an accuracy is too high: whoever reports it says so.

    Raises:
        DataError: the split has too few classes, or a class has too few images, or rotations
            are asked for of images that are not square, or of features.
    """

    split: ImageSplit
    spec: EpisodeSpec
    seed: int = field(kw_only=True)
    rotations: bool = field(default=False, kw_only=True)
    overlap: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_fits(self.split, self.spec, rotations=self.rotations, overlap=self.overlap)

    @property
    def num_classes(self) -> int:
        """Number of classes that episodes are drawn from, rotated copies included."""
        return self.split.num_classes * (4 if self.rotations else 1)

    def indices(self, episode: int) -> EpisodeIndices:
        """The images of one episode, by number.

        Raises:
            DataError: `episode` is not in 0 … 2**64 - 1.
        """
        classes, turns, images = self._draw(episode, 1)
        shot = self.spec.shot
        return EpisodeIndices(
            classes=classes[0],
            rotations=turns[0],
            support=images[0, :, :shot],
            query=images[0, :, shot:],
        )

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Episodes `first` … `first + count - 1`; equal whatever batches they are drawn in.

        Raises:
            DataError: a number is out of range.
        """
        classes, turns, images = self._draw(first, count)
        way, shot, query = self.spec.way, self.spec.shot, self.spec.query
        labels = np.arange(way)
        return EpisodeBatch(
            support=self._gather(images[..., :shot], turns),
            query=self._gather(images[..., shot:], turns),
            support_labels=np.tile(np.repeat(labels, shot), (count, 1)),
            query_labels=np.tile(np.repeat(labels, query), (count, 1)),
            classes=4 * classes + turns if self.rotations else classes,
        )

    def batches(
        self, count: int, *, steps: int, first_step: int = 0, prefetch: int = 2
    ) -> EpisodeLoader:
        """Return `steps` batches of `count` episodes, made ahead of time in a thread.

        `for batch in train.batches(32, steps=1500)` sees new episodes in each. See
        `EpisodeLoader`, which also closes as a context.

        Raises:
            DataError: a number is too small.
        """
        return EpisodeLoader(
            self, meta_batch=count, steps=steps, first_step=first_step, prefetch=prefetch
        )

    def _draw(self, first: int, count: int) -> tuple[Integers, Integers, Integers]:
        if first < 0 or count < 1 or first + count > 2**64:
            msg = f"episodes: expected first ≥ 0 and count ≥ 1, found {first} and {count}"
            raise DataError(msg)
        way, size = self.spec.way, self.spec.shot + self.spec.query
        need = 2 * way * (1 + size)
        bits = np.stack([words(self._key(), need, stream=first + i) for i in range(count)])
        virtual = choose(
            bits[:, : 2 * way].reshape(count, 2, way), np.full(count, self.num_classes)
        )
        classes, turns = np.divmod(virtual, 4) if self.rotations else (virtual, 0 * virtual)
        free, sizes = (
            bits[:, 2 * way :].reshape(count, way, 2, size),
            self.split.class_sizes[classes],
        )
        sets = np.split(free, [self.spec.shot], axis=-1) if self.overlap else [free]
        within = np.concatenate([choose(part, sizes) for part in sets], axis=-1)
        return classes, turns, self.split.offsets[classes][..., None] + within

    def _key(self) -> str:
        spec = self.spec
        return (
            f"bilevel-data episode 1: seed {self.seed} way {spec.way} shot {spec.shot} "
            f"query {spec.query} split {self.split.name} rotations {int(self.rotations)}"
            + " overlap"
            * self.overlap
        )

    def _gather(self, images: Integers, turns: Integers) -> Images:
        count, way, each = images.shape
        pixels = self.split.images[images.reshape(count * way, each)]
        for k in (1, 2, 3):
            chosen = np.flatnonzero(turns == k)
            if chosen.size:
                pixels[chosen] = np.rot90(pixels[chosen], k, axes=(2, 3))
        return pixels.reshape(count, way * each, *pixels.shape[2:])


def _check_fits(split: ImageSplit, spec: EpisodeSpec, *, rotations: bool, overlap: bool) -> None:
    have = split.num_classes * (4 if rotations else 1)
    if spec.way > have:
        copies = " with its rotated copies" if rotations else ""
        msg = (
            f"way={spec.way} but split {split.name!r} has {have} classes{copies}: "
            "lower way or use a split with more classes"
        )
        raise DataError(msg)
    smallest = int(np.argmin(split.class_sizes))
    images = int(split.class_sizes[smallest])
    if (max(spec.shot, spec.query) if overlap else spec.shot + spec.query) > images:
        msg = (
            f"shot={spec.shot} {'and' if overlap else 'plus'} query={spec.query} but class "
            f"{split.class_names[smallest]!r} of split {split.name!r} has {images} images: "
            "lower one of them or give the class more images"
        )
        raise DataError(msg)
    if rotations and split.images.dtype == np.float32:
        raise DataError(
            f"rotations turn pictures, but split {split.name!r} has features: turn rotations off, "
            "or give the store of the pictures"
        )
    height, width = split.images.shape[1:3]
    if rotations and height != width:
        msg = f"rotations need square images, but split {split.name!r} has {height}×{width}"
        raise DataError(f"{msg}: turn rotations off or prepare square images")
