"""Accuracy over fixed episodes, with its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from bilevel_data import EpisodeSampler
from bilevel_meta.classifier import evaluating
from bilevel_meta.learner import Learner
from bilevel_models import heads

__all__ = ["BATCH_PIXELS", "Score", "episodes_at_once", "evaluate", "half_interval"]

BATCH_PIXELS = 250_000  # of images encoded at once, 320 of Omniglot: their activations fit a cache


@final
@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean accuracy in [0, 1], half its 95 % interval, and the number of episodes."""

    accuracy: float
    ci95: float
    episodes: int

    def __str__(self) -> str:
        """Return it in per cent, as papers print it."""
        return f"{100 * self.accuracy:.2f} ± {100 * self.ci95:.2f} %"


def half_interval(values: Sequence[float], factor: float = 1.96) -> float:
    """Return factor·std/√n, with std the sample's (n-1): half the 95 % interval of the mean.

    Raises:
        ValueError: fewer than two values.
    """
    return factor * statistics.stdev(values) / math.sqrt(len(values))


def episodes_at_once(sampler: EpisodeSampler) -> int:
    """Return how many episodes to encode in one batch."""
    spec = sampler.spec
    pixels = spec.way * (spec.shot + spec.query) * math.prod(sampler.split.images.shape[1:])
    return max(1, BATCH_PIXELS // pixels)


def evaluate(learner: Learner, sampler: EpisodeSampler, *, episodes: int = 600) -> Score:
    """Return the mean accuracy of a learner over the first episodes of a sampler.

    They are the same for every learner, so two of them are compared on equal tasks.

    Args:
        learner: in the mode of test while it is scored.
        sampler: such as `store.episodes("test", way=5, shot=1, query=15)`.
        episodes: how many, two or more.

    Raises:
        ValueError: fewer than two episodes have no interval.

    Cost: a forward pass over the images of each episode, and its heads.
    """
    if episodes < 2:
        raise ValueError(f"episodes={episodes}: fewer than two have no interval: give more")
    size, found = episodes_at_once(sampler), []
    with evaluating(learner):
        for first in range(0, episodes, size):
            batch = learner.take(sampler.batch(first, min(size, episodes - first)))
            found.append(heads.accuracy(learner.scores(batch), batch.query_labels))
    accuracies = torch.cat(found).tolist()
    return Score(
        accuracy=statistics.fmean(accuracies), ci95=half_interval(accuracies), episodes=episodes
    )
