"""A task's accuracy over fixed episodes, each image encoded once where that gives the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.feature_table import FeatureTable, feature_table
from bilevel_apps.head_scores import head_scores
from bilevel_apps.meta_task import MetaTask
from bilevel_apps.processes import ALONE, Processes
from bilevel_apps.scoring import Score, episode_accuracies, score
from bilevel_core import DivergenceError
from bilevel_data import EpisodeSampler

__all__ = ["score_task", "task_accuracies"]


def score_task(
    task: MetaTask,
    sampler: EpisodeSampler,
    *,
    episodes: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> Score:
    """Return the score over what `task_accuracies` returns for the same arguments."""
    return score(
        task_accuracies(task, sampler, episodes=episodes, device=device, processes=processes)
    )


def task_accuracies(
    task: MetaTask,
    sampler: EpisodeSampler,
    *,
    episodes: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda _done: None,
    processes: Processes = ALONE,
) -> NDArray[np.float64]:
    """Return what `task.accuracies` gives for each of the first episodes, (episodes,).

    Args:
        task: what is scored.
        sampler: fixes the episodes.
        episodes: how many.
        device: where to compute.
        progress: called with the number of episodes done, or as many for the work that is done.
        processes: divide the work; the result is that of one process.

    Raises:
        bilevel_core.DivergenceError: the inner runs diverge.
        RunError: a process is gone.

    Cost: a forward pass over the distinct images (`feature_table`), or over the images of each
    episode where their features depend on it; and the heads' steps.
    """
    table = feature_table(
        task,
        [sampler],
        episodes=episodes,
        device=device,
        progress=lambda share: progress(int(share * episodes)),
        processes=processes,
    )
    if table is None:
        return episode_accuracies(
            task.accuracies,
            sampler,
            episodes=episodes,
            device=device,
            progress=progress,
            processes=processes,
        )
    # Heads are cheap, and the first process's answer is the same one for all.
    return processes.from_first(lambda: _from_table(task, table, sampler, episodes, device))


def _from_table(
    task: MetaTask,
    table: FeatureTable,
    sampler: EpisodeSampler,
    episodes: int,
    device: torch.device,
) -> NDArray[np.float64]:
    steps = task.steps
    found = head_scores(task, sampler, steps=[steps], episodes=episodes, device=device, table=table)
    if steps in found.diverged:
        raise DivergenceError(found.diverged[steps])
    return found.accuracies[steps]
