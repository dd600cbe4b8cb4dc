"""Look at a representation: the nearest and the farthest pairs across two episodes (Figure 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel_apps.errors import InputError
from bilevel_apps.meta_task import to_device
from bilevel_apps.pictures import Pair, draw_pairs
from bilevel_apps.trained_run import TrainedRun, load_run
from bilevel_data import Store

__all__ = ["EmbedRequest", "Embedded", "embed_run", "extreme_pairs"]


@final
@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """Which episodes to compare, and how many pairs to show."""

    data: Path | None = None
    split_a: str = "train"
    split_b: str = "test"
    seed: int = 0
    pairs: int = 5
    device: str = "auto"


@final
@dataclass(frozen=True, kw_only=True)
class Embedded:
    """All images of an episode.

    Attributes:
        pixels: (n, height, width, channels).
        features: (n, dim).
        labels: (n,), which images are of one class.
    """

    pixels: NDArray[np.uint8]
    features: Tensor
    labels: NDArray[np.int64]


def embed_run(folder: Path, out: Path, request: EmbedRequest) -> Path:
    """Draw the nearest and farthest pairs of a run's representation; returns the picture's path.

    Raises:
        InputError: the run, the store, or the folder to write to cannot be used.
        bilevel_data.DataError: the store cannot be used.
    """
    run = load_run(folder, request.device)
    store = run.store(request.data)
    splits = (request.split_a, request.split_b)
    a, b = (_embedded(run, store, name, request.seed) for name in splits)
    nearest, farthest = extreme_pairs(a, b, request.pairs)
    try:
        out.mkdir(parents=True, exist_ok=True)
        picture = out / "pairs.png"
        draw_pairs(
            picture,
            nearest,
            farthest,
            names=splits,
            components=_some_components(a.features.shape[1], request.seed),
        )
    except OSError as error:
        raise InputError(f"{out}: cannot write here ({error.strerror}): choose another") from None
    return picture


def extreme_pairs(a: Embedded, b: Embedded, count: int) -> tuple[list[Pair], list[Pair]]:
    """Return the `count` nearest and farthest pairs (x of a, x′ of b).

    No image comes twice, and no pair of classes, so that the pairs show different things.

    The distance is ‖h(x) - h(x′)‖, by exact search in float64. Cost: n_a · n_b distances.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Figure 5, which shows the first of each.
    """
    # Not through inner products: those lose the digits of small distances.
    distances = torch.cdist(
        a.features.double(), b.features.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy()
    order = np.argsort(distances, axis=None, kind="stable")
    return (
        _without_repetition(a, b, distances, order, count),
        _without_repetition(a, b, distances, order[::-1], count),
    )


def _without_repetition(
    a: Embedded,
    b: Embedded,
    distances: NDArray[np.float64],
    order: NDArray[np.int64],
    count: int,
) -> list[Pair]:
    pairs: list[Pair] = []
    used: set[tuple[str | int, ...]] = set()
    for flat in order:
        i, j = divmod(int(flat), distances.shape[1])
        marks = {("a", i), ("b", j), ("classes", int(a.labels[i]), int(b.labels[j]))}
        if marks & used:
            continue
        used |= marks
        pairs.append(
            Pair(
                images=(a.pixels[i], b.pixels[j]),
                features=(a.features[i].numpy(), b.features[j].numpy()),
                distance=float(distances[i, j]),
            )
        )
        if len(pairs) == count:
            break
    return pairs


def _embedded(run: TrainedRun, store: Store, split: str, seed: int) -> Embedded:
    """Encode all images, support and query, of one episode of the run's kind."""
    # Upright: that is how a person compares characters.
    sampler = run.sampler(store, split, seed=seed, rotations=False)
    batch = sampler.batch(0, 1)
    episodes = to_device(batch, sampler.spec.way, run.device)
    features = run.task.encoder.encode(episodes.support, episodes.query, training=False)
    return Embedded(
        pixels=np.concatenate([batch.support[0], batch.query[0]]),
        features=torch.cat([features.support[0], features.query[0]]).cpu(),
        labels=np.concatenate([batch.support_labels[0], batch.query_labels[0]]),
    )


def _some_components(dim: int, seed: int, count: int = 48) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(seed).permutation(dim)[:count])
