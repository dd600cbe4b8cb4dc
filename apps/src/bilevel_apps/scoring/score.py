"""Accuracy over fixed episodes, with its interval: the one way in which anything is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.errors import InputError
from bilevel_apps.system.processes import ALONE, Processes
from bilevel_apps.system.signals import Interrupted
from bilevel_data import EpisodeSampler
from bilevel_meta.episodes import Episodes, to_device
from bilevel_meta.evaluation import BATCH_PIXELS, Score, episodes_at_once, half_interval

__all__ = [
    "BATCH_PIXELS",
    "Score",
    "check_count",
    "episode_accuracies",
    "episodes_at_once",
    "half_interval",
    "nearest_pixel",
    "score",
    "score_episodes",
    "until_signal",
]

T = TypeVar("T")


def score(accuracies: NDArray[np.float64]) -> Score:
    """Return the mean over episodes and its `half_interval`.

    Raises:
        InputError: as `check_count`.
    """
    check_count(len(accuracies))
    ci95 = half_interval(accuracies.tolist())
    return Score(accuracy=float(accuracies.mean()), ci95=ci95, episodes=len(accuracies))


def check_count(episodes: int) -> None:
    """Refuse to score so few episodes that their mean has no interval.

    Raises:
        InputError: fewer than two.
    """
    if episodes < 2:
        raise InputError(f"episodes={episodes}: fewer than two have no interval: give more")


def score_episodes(
    classify: Callable[[Episodes], torch.Tensor],
    sampler: EpisodeSampler,
    *,
    episodes: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda _done: None,
    processes: Processes = ALONE,
) -> Score:
    """Return the score over what `episode_accuracies` returns for the same arguments."""
    return score(
        episode_accuracies(
            classify,
            sampler,
            episodes=episodes,
            device=device,
            progress=progress,
            processes=processes,
        )
    )


def episode_accuracies(
    classify: Callable[[Episodes], torch.Tensor],
    sampler: EpisodeSampler,
    *,
    episodes: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda _done: None,
    processes: Processes = ALONE,
    signals: Sequence[int] = (),
) -> NDArray[np.float64]:
    """Return the accuracy of each of the first `episodes` episodes of a sampler, (episodes,).

    Args:
        classify: accuracies (batch,) of a meta-batch, such as `HyperRepresentation.accuracies`.
        sampler: fixes the episodes: the same ones for everything that is compared on them.
        episodes: how many.
        device: where to put the images.
        progress: called with the number done after each batch.
        processes: take turns at the batches; the result is that of one process.
        signals: as of `until_signal`.

    Raises:
        Interrupted: a process has received a signal.
        RunError: a process is gone.
    """
    size = episodes_at_once(sampler)
    results = torch.zeros(episodes, dtype=torch.float64)
    firsts = range(size * processes.rank, episodes, size * processes.size)
    for first in until_signal(firsts, signals, processes):
        count = min(size, episodes - first)
        batch = to_device(sampler.batch(first, count), sampler.spec.way, device)
        results[first : first + count] = classify(batch)
        progress(first + count)
    processes.add(results)
    return results.numpy()


def until_signal(
    parts: Iterable[T], signals: Sequence[int], processes: Processes = ALONE
) -> Iterator[T]:
    """Yield parts of a work until a signal comes; a collective, after the last of them.

    Args:
        parts: those of this process.
        signals: that it has received so far, a list that grows.
        processes: do the work together, and give it up together.

    Raises:
        Interrupted: one of the processes has received a signal.
        RunError: a process is gone.
    """
    for part in parts:
        if signals:
            break
        yield part
    wishes = torch.tensor([float(bool(signals))])
    processes.add(wishes)
    if wishes.item() > 0:
        raise Interrupted


def nearest_pixel(episodes: Episodes) -> torch.Tensor:
    """Return the accuracies (batch,) of the nearest support image in raw pixels, as a baseline."""
    support, query = episodes.support.flatten(2), episodes.query.flatten(2)
    nearest = torch.cdist(query, support).argmin(dim=-1)
    predicted = episodes.support_labels.gather(1, nearest)
    return (predicted == episodes.query_labels).double().mean(dim=1)
