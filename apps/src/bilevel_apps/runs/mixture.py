"""Several stores in one training: each meta-batch is drawn from one of them, by weight.

The first, `data`, has weight 1 and is the run's own: validated on, and evaluated on by default.
The others are those of `train.mix`. They go by the hashes of their training images, so neither
their places nor their order decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import PRETRAINED, store_of, training_sampler
from bilevel_apps.system.terminal import warn
from bilevel_data import (
    EpisodeSampler,
    ImageSplit,
    MixedSampler,
    Preprocessing,
    Store,
    VariedSampler,
    common_ink,
)
from bilevel_data.dataset import pixels_of

__all__ = ["Weighted", "mixed_sampler", "mixed_stores", "seen_preprocessing"]

LOOKED_AT = 200  # images of a store that does not say what ink they have


@final
@dataclass(frozen=True)
class Weighted:
    """A store that training draws from beside the run's own, and how often against that one's 1."""

    store: Store
    weight: float

    @property
    def sha256(self) -> str:
        """Of its training images."""
        return self.store.manifest.splits["train"].sha256


def mixed_stores(store: Store, config: Config) -> tuple[Weighted, ...]:
    """Open the stores of `train.mix`.

    Args:
        store: the run's own.
        config: the run's.

    Raises:
        InputError: one has no training split, its images are there already or are of another kind,
            or the method trains one classifier of all classes.
        bilevel_data.DataError: one is missing or unusable.
    """
    mix = config.train.mix
    if not mix:
        return ()
    if config.method in PRETRAINED:
        raise InputError(
            f"train.mix={mix}: method={config.method} trains one classifier of the classes of one "
            "store: leave train.mix empty, or choose a method of episodes"
        )
    found = [Weighted(store_of(path), weight) for path, weight in mix.items()]
    there = {info.sha256 for info in store.manifest.splits.values()}
    for other in found:
        _check_split(other.store)
        _check_kind(store, other.store)
        if other.sha256 in there:
            raise InputError(
                f"{other.store.path}: its training images are there already, in {store.path} or "
                "another store of train.mix: give each store once, with its weight"
            )
        there.add(other.sha256)
        _tell_common_names(store, other.store)
    return tuple(sorted(found, key=lambda other: other.sha256))


def mixed_sampler(
    store: Store, config: Config, others: Sequence[Weighted]
) -> EpisodeSampler | VariedSampler | MixedSampler:
    """Read the training splits and return a sampler of meta-batches, each of one store.

    Raises:
        InputError: a store has too few classes or images, or drawings with another ink.
        bilevel_data.DataError: a store is damaged.
    """
    own = training_sampler(store, config)
    if not others:
        return own
    samplers = [own, *(training_sampler(other.store, config) for other in others)]
    ours = seen_preprocessing(store, own.split)
    for other, sampler in zip(others, samplers[1:], strict=True):
        theirs = seen_preprocessing(other.store, sampler.split)
        _refuse(store, other.store, theirs.differences(ours))
    weights = [1.0, *(other.weight for other in others)]
    return MixedSampler(samplers, weights, seed=config.seed, block=config.train.meta_batch)


def seen_preprocessing(store: Store, split: ImageSplit) -> Preprocessing:
    """Return how images were made; where a store does not say what ink they have, borders do."""
    said = store.manifest.preprocessing
    if said.ink is not None or store.manifest.features is not None:
        return said
    step = max(1, len(split.images) // LOOKED_AT)
    return replace(said, ink=common_ink(pixels_of(split.images[::step])))


def _check_split(store: Store) -> None:
    if "train" not in store.splits:
        raise InputError(
            f"{store.path}: no split 'train' to draw from, only {', '.join(store.splits)}: leave "
            "it out of train.mix"
        )


def _check_kind(store: Store, other: Store) -> None:
    """Refuse images of another shape, or features of another network."""
    ours, theirs = store.manifest.features, other.manifest.features
    if ours is None and theirs is None:
        made = other.manifest.preprocessing
        _refuse(store, other, made.differences(store.manifest.preprocessing))
    elif ours is None or theirs is None or ours.weights_sha256 != theirs.weights_sha256:
        what, own = (f"features of {f}" if f else "pictures" for f in (theirs, ours))
        _refuse(store, other, (f"{what} and not {own}",))


def _refuse(store: Store, other: Store, differences: Sequence[str]) -> None:
    if differences:
        raise InputError(
            f"{other.path}: prepared otherwise than {store.path}: {', '.join(differences)}: "
            "prepare it again like that one to train on both"
        )


def _tell_common_names(store: Store, other: Store) -> None:
    """Say where a class that is trained on is called like one to be validated or tested on."""
    kept = {
        name
        for split, info in store.manifest.splits.items()
        if split != "train"
        for name in info.class_names
    }
    common = [n for n in other.manifest.splits["train"].class_names if n in kept]
    if common:
        warn(
            f"{other.path}: {len(common)} of its training classes are called like classes that "
            f"{store.path} validates or tests on, such as {common[0]!r}: where they are the same, "
            "scores are too good"
        )
