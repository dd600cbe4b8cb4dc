"""Characters as section 5.1 has them: features of a network that never saw them, in three sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel_apps.embed.samples import embed_images
from bilevel_apps.errors import InputError
from bilevel_apps.runs.load import TrainedRun, load_run
from bilevel_apps.system.hardware import own_threads
from bilevel_data import ImageSplit

__all__ = ["EACH", "Characters", "Examples", "Sets", "draw_sets", "open_characters"]

EACH = 3  # examples of a class in D_tr, and in D_val
TEST = 15  # in D_test, or what is left of a class
SPLIT = "test"


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """Features x (n, dim), targets y (n, classes), and labels (n,)."""

    x: Tensor
    y: Tensor
    labels: Tensor


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Sets:
    """D_tr, D_val and D_test."""

    train: Examples
    held: Examples
    test: Examples


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Characters:
    """The classes to draw from, and the network.

    Attributes:
        run: the network, with its weights.
        split: classes that it has not seen.
        data: the name of the data set.
    """

    run: TrainedRun
    split: ImageSplit
    data: str

    def test_size(self) -> int:
        """Return how many examples of a class D_test has."""
        return min(TEST, int(self.split.class_sizes.min()) - 2 * EACH)


def open_characters(weights: Path, data: Path | None) -> Characters:
    """Load the network and the classes of the test split.

    Args:
        weights: the folder of a run, or `pretrained:TAG`.
        data: the store.

    Raises:
        InputError: one of them cannot be used, or they do not fit together.
        bilevel_data.DataError: the store is damaged.
    """
    with own_threads():
        run = load_run(weights, "cpu")
    store = run.store(data)
    if SPLIT not in store.splits:
        raise InputError(
            f"{store.path}: no split {SPLIT!r}, whose classes the network has not seen"
        )
    split = store.load(SPLIT)
    found = Characters(run=run, split=split, data=store.manifest.name)
    if split.images.shape[1:] != run.image_shape:
        raise InputError(
            f"{store.path}: images of (height, width, channels) {split.images.shape[1:]}, but the "
            f"network was trained on {run.image_shape}: give a store made the same way"
        )
    if found.test_size() < 1:
        raise InputError(f"{store.path}: a class of {SPLIT} has fewer than {2 * EACH + 1} images")
    return found


def draw_sets(characters: Characters, seed: int, classes: int) -> Sets:
    """Return the sets of classes and examples that a seed draws.

    Features and targets are centred: the mean of D_tr is taken from all features, and 1/classes
    from targets of 0 and 1, which is their mean.

    Args:
        characters: what is drawn from.
        seed: of classes and examples.
        classes: how many.

    Cost: a forward pass over the examples.
    """
    split, rng = characters.split, np.random.default_rng(seed)
    sizes = (EACH, EACH, characters.test_size())
    chosen = rng.permutation(split.num_classes)[:classes]
    rows = np.stack([rng.permutation(split.class_sizes[c])[: sum(sizes)] for c in chosen])
    numbers = split.offsets[chosen][:, None] + rows
    labels = np.broadcast_to(np.arange(classes)[:, None], rows.shape)
    found = embed_images(
        characters.run, split.images[numbers.ravel()], labels.ravel(), seed=seed
    ).features.reshape(*rows.shape, -1)
    ends = np.cumsum(sizes)[:-1]
    mean = found[:, :EACH].reshape(-1, found.shape[-1]).mean(0, dtype=np.float64)
    train, held, test = (
        _examples(part - mean, names, classes)
        for part, names in zip(
            np.split(found, ends, axis=1), np.split(labels, ends, axis=1), strict=True
        )
    )
    return Sets(train=train, held=held, test=test)


def _examples(features: NDArray[np.float64], labels: NDArray[np.int64], classes: int) -> Examples:
    """Return examples from features (classes, each, dim) and labels (classes, each)."""
    names = torch.from_numpy(labels.reshape(-1).copy())
    ones = torch.nn.functional.one_hot(names, classes).double()
    x = torch.from_numpy(features.reshape(len(names), -1))
    return Examples(x=x, y=ones - 1 / classes, labels=names)
