"""Which images are looked at, and their features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast, final

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.runs.load import TrainedRun
from bilevel_apps.scoring.score import BATCH_PIXELS
from bilevel_data import EpisodeSampler
from bilevel_meta.episodes import to_device
from bilevel_models import Encoder, as_images

__all__ = ["Embedded", "balanced", "embed_episode", "embed_images"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Images with their features.

    Attributes:
        pixels: (n, height, width, channels).
        features: (n, dim).
        labels: (n,), which images are of one class.
    """

    pixels: NDArray[np.uint8]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def of(self, chosen: NDArray[np.int64]) -> Embedded:
        """Return some of the images, by number."""
        return Embedded(
            pixels=self.pixels[chosen], features=self.features[chosen], labels=self.labels[chosen]
        )


def encoder_of(run: TrainedRun) -> Encoder:
    """Return what makes features of images in a run."""
    return cast("Encoder", run.learner.encoder)


def embed_episode(run: TrainedRun, sampler: EpisodeSampler) -> Embedded:
    """Encode all images, support and query, of a sampler's first episode."""
    batch = sampler.batch(0, 1)
    episodes = to_device(batch, sampler.spec.way, run.device)
    with torch.no_grad():
        sets = encoder_of(run)(episodes.support, episodes.query, training=False)
    parts = [features[0].cpu().numpy() for features in sets]
    return Embedded(
        pixels=np.concatenate([batch.support[0], batch.query[0]]),
        features=np.concatenate(parts),
        labels=np.concatenate([batch.support_labels[0], batch.query_labels[0]]),
    )


def embed_images(
    run: TrainedRun, pixels: NDArray[np.uint8], labels: NDArray[np.int64], *, seed: int
) -> Embedded:
    """Encode images that belong to no episode.

    Where images are normalised by the statistics of those beside them (`episode`, `support`), they
    stand among some hundred others, in an order drawn from the seed: a mixture of classes.

    Args:
        run: whose representation.
        pixels: (n, height, width, channels).
        labels: (n,).
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(pixels))
    size = max(1, BATCH_PIXELS // math.prod(pixels.shape[1:]))
    features: list[NDArray[np.float32]] = []
    for part in np.array_split(order, math.ceil(len(order) / size)):
        images = as_images(pixels[part], run.device)[None]
        # An encoder takes two sets; the second, of two images, is not looked at.
        with torch.no_grad():
            found, _ = encoder_of(run)(images, images[:, :2], training=False)
        features.append(found[0].cpu().numpy())
    back = np.argsort(order)
    return Embedded(pixels=pixels, features=np.concatenate(features)[back], labels=labels)


def balanced(
    labels: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
    *,
    classes: int | None = None,
) -> NDArray[np.int64]:
    """Return the numbers of about `count` images, in order, equally many of each chosen class.

    Args:
        labels: (n,).
        count: at most so many images, but two of each class.
        rng: the source of chance.
        classes: how many classes; None takes all, or as many as leave two images each.
    """
    names = np.unique(labels)
    if classes is None:
        classes = max(2, count // 2)
    kept = rng.permutation(names)[:classes]
    each = max(2, count // len(kept))
    parts = [rng.permutation(np.flatnonzero(labels == name))[:each] for name in kept]
    return np.sort(np.concatenate(parts))
