"""A task's accuracy over fixed episodes, each image encoded once where that gives the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.scoring.feature_table import FeatureTable, feature_table
from bilevel_apps.scoring.heads import head_scores
from bilevel_apps.scoring.score import Score, episode_accuracies, score
from bilevel_apps.system.processes import ALONE, Processes
from bilevel_apps.system.signals import Interrupted
from bilevel_core import DivergenceError
from bilevel_data import EpisodeSampler
from bilevel_meta.learner import Learner
from bilevel_meta.methods.hyper_representation import inner_of

__all__ = ["learner_accuracies", "score_learner"]


def score_learner(
    learner: Learner,
    sampler: EpisodeSampler,
    *,
    episodes: int,
    device: torch.device,
    processes: Processes = ALONE,
    signals: Sequence[int] = (),
) -> Score:
    """Return the score over what `learner_accuracies` returns for the same arguments."""
    return score(
        learner_accuracies(
            learner, sampler, episodes=episodes, device=device, processes=processes, signals=signals
        )
    )


def learner_accuracies(
    learner: Learner,
    sampler: EpisodeSampler,
    *,
    episodes: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda _done: None,
    processes: Processes = ALONE,
    signals: Sequence[int] = (),
) -> NDArray[np.float64]:
    """Return what `learner.accuracies` gives for each of the first episodes, (episodes,).

    Args:
        learner: what is scored.
        sampler: fixes the episodes.
        episodes: how many.
        device: where to compute.
        progress: called with the number of episodes done, or as many for the work that is done.
        processes: divide the work; the result is that of one process.
        signals: that this process has received so far, a list that grows; the work is given up
            between two of its parts as soon as there is one.

    Raises:
        bilevel_core.DivergenceError: the inner runs diverge.
        Interrupted: a process has received a signal.
        RunError: a process is gone.

    Cost: a forward pass over the distinct images (`feature_table`), or over the images of each
    episode where their features depend on it; and the heads' steps.
    """
    table = feature_table(
        learner,
        [sampler],
        episodes=episodes,
        device=device,
        progress=lambda share: progress(int(share * episodes)),
        processes=processes,
        signals=signals,
    )
    if table is None:
        return episode_accuracies(
            learner.accuracies,
            sampler,
            episodes=episodes,
            device=device,
            progress=progress,
            processes=processes,
            signals=signals,
        )
    # Heads are cheap, and the first process's answer is the same one for all.
    found = processes.from_first(
        lambda: _from_table(learner, table, sampler, episodes, device, signals)
    )
    if found is None:
        raise Interrupted
    return found


def _from_table(
    learner: Learner,
    table: FeatureTable,
    sampler: EpisodeSampler,
    episodes: int,
    device: torch.device,
    signals: Sequence[int],
) -> NDArray[np.float64] | None:
    """Return the accuracies, or nothing where a signal has come."""
    own = inner_of(learner)
    try:
        found = head_scores(
            learner,
            sampler,
            inner=[own],
            episodes=episodes,
            device=device,
            table=table,
            signals=signals,
        )
    except Interrupted:  # of which the other processes know nothing
        return None
    if own in found.diverged:
        raise DivergenceError(found.diverged[own])
    return found.accuracies[own]
