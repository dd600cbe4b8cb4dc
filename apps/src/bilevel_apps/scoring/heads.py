"""Accuracies of an episode's heads that are trained in several ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel_apps.scoring.calibration import Calibration
from bilevel_apps.scoring.feature_table import FeatureTable, episode_keys
from bilevel_apps.scoring.score import episodes_at_once, until_signal
from bilevel_apps.system.workers import in_threads
from bilevel_core import DivergenceError
from bilevel_data import EpisodeSampler
from bilevel_meta.classifier import evaluating
from bilevel_meta.episodes import to_device
from bilevel_meta.learner import HeadLearner, Learner, head_logits
from bilevel_meta.methods.hyper_representation import HyperRepresentation, InnerLoop
from bilevel_models import heads

__all__ = ["Encoded", "HeadScores", "encoded_episodes", "head_scores"]

FEATURE_BYTES = 16 << 20  # of the features that heads are trained on at once


@final
@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """What heads came to, by T and η.

    Attributes:
        accuracies: of each episode, (episodes,), where the inner runs stayed finite.
        calibration: whether their probabilities are what they say.
        diverged: why there are none, for the others.
        surprise: how far each episode is from the features of training, (episodes,), as of
            `HeadSolver.surprise`; None where nothing is known of those.
    """

    accuracies: dict[InnerLoop, NDArray[np.float64]] = field(default_factory=dict)
    calibration: dict[InnerLoop, Calibration] = field(default_factory=dict)
    diverged: dict[InnerLoop, str] = field(default_factory=dict)
    surprise: NDArray[np.float64] | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features and labels of the episodes first, first + 1, …, as in `Episodes`."""

    first: int
    support: Tensor
    query: Tensor
    support_labels: Tensor
    query_labels: Tensor


def head_scores(
    learner: Learner,
    sampler: EpisodeSampler,
    *,
    inner: Sequence[InnerLoop],
    episodes: int,
    device: torch.device,
    table: FeatureTable | None = None,
    progress: Callable[[int], None] = lambda _done: None,
    signals: Sequence[int] = (),
) -> HeadScores:
    """Return the accuracies of a learner for each T and η, over the first episodes of a sampler.

    Args:
        learner: the representation; its own T and η do not matter. A learner of another kind trains
            heads in its own way, whatever T and η are.
        sampler: fixes the episodes.
        inner: the T and η.
        episodes: how many.
        device: where to compute.
        table: the features of the episodes' images; None encodes each batch of episodes, once.
        progress: called with the number done after each batch.
        signals: as of `until_signal`.

    Raises:
        Interrupted: there is a signal.

    Cost: the backbone's forward pass, once; the heads' sum of all T steps.
    """
    solver = learner.solver if isinstance(learner, HyperRepresentation) else None
    scores = HeadScores(
        surprise=None if solver is None else np.zeros(episodes),
        accuracies={loop: np.zeros(episodes) for loop in inner},
        calibration={loop: Calibration() for loop in inner},
    )
    if not isinstance(learner, HeadLearner):
        _without_features(learner, sampler, scores, episodes, device, progress, signals)
        return scores

    def judged(make: Callable[[], Encoded]) -> tuple[Encoded, dict[InnerLoop, Tensor | str]]:
        batch, loops = make(), list(scores.accuracies)
        return batch, {loop: _logits(learner, batch, sampler.spec.way, loop) for loop in loops}

    parts = _batches(learner, sampler, episodes, device, table)
    own = table is not None and device.type == "cpu"  # else the backbone has all threads
    threads = min(torch.get_num_threads(), len(parts)) if own else 1
    for batch, found in until_signal(in_threads(judged, parts, threads), signals):
        done = batch.first + len(batch.support)
        if solver is not None and scores.surprise is not None:
            targets = heads.one_hot(batch.support_labels, sampler.spec.way, batch.support)
            far = solver.surprise(batch.support, targets)
            scores.surprise[batch.first : done] = far.cpu().numpy()
        for loop, logits in found.items():
            if loop in scores.diverged:
                continue
            if isinstance(logits, str):
                scores.diverged[loop] = logits
                del scores.accuracies[loop]
                continue
            right = heads.accuracy(logits, batch.query_labels)
            scores.accuracies[loop][batch.first : done] = right.cpu().numpy()
            scores.calibration[loop].add(logits.softmax(dim=-1), batch.query_labels)
        progress(done)
    return scores


def _without_features(
    learner: Learner,
    sampler: EpisodeSampler,
    scores: HeadScores,
    episodes: int,
    device: torch.device,
    progress: Callable[[int], None],
    signals: Sequence[int],
) -> None:
    """Write the scores of a learner that moves its whole network, or why there are none."""
    for first, count in until_signal(_parts(episodes, episodes_at_once(sampler)), signals):
        batch = to_device(sampler.batch(first, count), sampler.spec.way, device)
        try:
            with evaluating(learner):
                logits = learner.scores(batch)
        except DivergenceError as error:
            scores.diverged.update(dict.fromkeys(scores.accuracies, str(error)))
            scores.accuracies.clear()
            return
        right = heads.accuracy(logits, batch.query_labels).cpu().numpy()
        for loop, values in scores.accuracies.items():
            values[first : first + count] = right
            scores.calibration[loop].add(logits.softmax(dim=-1), batch.query_labels)
        progress(first + count)


def encoded_episodes(
    learner: HeadLearner,
    sampler: EpisodeSampler,
    episodes: int,
    device: torch.device,
    table: FeatureTable | None,
) -> Iterator[Encoded]:
    """Yield the features of a sampler's first episodes, as `head_scores` takes them."""
    return (make() for make in _batches(learner, sampler, episodes, device, table))


def _batches(
    learner: HeadLearner,
    sampler: EpisodeSampler,
    episodes: int,
    device: torch.device,
    table: FeatureTable | None,
) -> Sequence[Callable[[], Encoded]]:
    """Return what makes the features of some episodes each."""
    if table is None:
        parts = _parts(episodes, episodes_at_once(sampler))
        return [partial(_encoded, learner, sampler, *part, device) for part in parts]
    images = sampler.spec.way * (sampler.spec.shot + sampler.spec.query)
    size = max(1, FEATURE_BYTES // (images * table.features[0].nbytes))
    return [partial(_looked_up, table, sampler, *part) for part in _parts(episodes, size)]


@torch.no_grad()
def _logits(learner: HeadLearner, batch: Encoded, way: int, inner: InnerLoop) -> Tensor | str:
    """Return the logits (batch, way*query, way) of the episodes' heads, or why there are none."""
    images, labels = batch.support, batch.support_labels
    try:
        if isinstance(learner, HyperRepresentation):
            return heads.logits(learner.fit_head(images, labels, way, inner), batch.query)
        return head_logits(learner.fit_head(images, labels, way), batch.query)
    except DivergenceError as error:
        return str(error)


def _encoded(
    learner: HeadLearner, sampler: EpisodeSampler, first: int, count: int, device: torch.device
) -> Encoded:
    """Encode episodes with the statistics of their own."""
    images = to_device(sampler.batch(first, count), sampler.spec.way, device)
    with torch.no_grad():
        support, query = learner.encoder(images.support, images.query, training=False)
    return Encoded(
        first=first,
        support=support,
        query=query,
        support_labels=images.support_labels,
        query_labels=images.query_labels,
    )


def _looked_up(table: FeatureTable, sampler: EpisodeSampler, first: int, count: int) -> Encoded:
    spec, device = sampler.spec, table.features.device
    classes = torch.arange(spec.way, device=device)
    support, query = episode_keys(sampler, first, count)
    return Encoded(
        first=first,
        support=table.of(support),
        query=table.of(query),
        support_labels=classes.repeat_interleave(spec.shot).expand(count, -1),
        query_labels=classes.repeat_interleave(spec.query).expand(count, -1),
    )


def _parts(total: int, size: int) -> Iterator[tuple[int, int]]:
    for number in range(math.ceil(total / size)):
        yield number * size, min(size, total - number * size)
