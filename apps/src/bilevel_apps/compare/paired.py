"""Runs on the very same episodes, so that what the episodes have in common cancels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from bilevel_apps.compare.tracked import TrackedRun
from bilevel_apps.errors import InputError
from bilevel_apps.runs.load import TrainedRun, load_run
from bilevel_apps.scoring.learner import learner_accuracies
from bilevel_apps.scoring.score import Score, check_count, score
from bilevel_apps.system.terminal import progress_bar, warn
from bilevel_core import DivergenceError
from bilevel_data import DataError, EpisodeSampler
from bilevel_meta.methods.hyper_representation import InnerLoop

__all__ = ["EpisodeChoice", "Paired", "paired_scores"]


@final
@dataclass(frozen=True, kw_only=True)
class EpisodeChoice:
    """Which episodes to score; None stands for what the first run was trained for."""

    data: Path | None = None
    split: str = "val"
    count: int = 200
    way: int | None = None
    shot: int | None = None
    query: int | None = None
    seed: int = 0
    device: str = "auto"


@final
@dataclass(frozen=True, kw_only=True)
class Paired:
    """Scores of several runs on the same episodes.

    Attributes:
        what: the episodes, for a heading.
        scores: of each run, by its place; None where it cannot be scored.
        differences: mean of (a run's accuracy - the first's) over the episodes, with its interval.
        inner: the T and η that each was scored with; None where it was not.
    """

    what: str
    scores: Sequence[Score | None]
    differences: Sequence[Score | None]
    inner: Sequence[InnerLoop | None]


def paired_scores(runs: Sequence[TrackedRun], episodes: EpisodeChoice) -> Paired:
    """Score each run's checkpoint; one that cannot be scored costs a warning.

    With a_i and b_i the accuracies of two runs on episode i, the difference is the mean of
    a_i - b_i, and half its 95 % interval 1.96·std(a_i - b_i)/√n: narrower than that of two separate
    scores, because an episode that is hard for one run is hard for the other.

    Cost: `learner_accuracies` for each run.

    Raises:
        InputError: fewer than two episodes.
    """
    check_count(episodes.count)
    first: EpisodeSampler | None = None
    found: list[NDArray[np.float64] | None] = []
    inner: list[InnerLoop | None] = []
    for run in runs:
        try:
            trained = _load(run, episodes.device)
            first = first or _sampler(trained, episodes)
            found.append(_accuracies(trained, run.name, first, episodes))
            inner.append(trained.inner)
        except (InputError, DataError, DivergenceError) as error:
            warn(f"{run.name} is not scored: {error}")
            found.append(None)
            inner.append(None)
    return Paired(
        what=_described(first, episodes),
        scores=[None if a is None else score(a) for a in found],
        differences=_differences(found),
        inner=inner,
    )


def _load(run: TrackedRun, device: str) -> TrainedRun:
    if run.folder is None:
        raise InputError(
            "it is no longer in the folder where it was trained: name it by its folder"
        )
    return load_run(run.folder, device)


def _sampler(run: TrainedRun, episodes: EpisodeChoice) -> EpisodeSampler:
    store = run.store(episodes.data)
    return run.sampler(
        store,
        episodes.split,
        seed=episodes.seed,
        rotations=run.counts_rotations(store, episodes.split),
        way=episodes.way,
        shot=episodes.shot,
        query=episodes.query,
    )


def _accuracies(
    run: TrainedRun, name: str, sampler: EpisodeSampler, episodes: EpisodeChoice
) -> NDArray[np.float64]:
    shape = sampler.split.images.shape[1:]
    if shape != run.image_shape:
        raise InputError(f"it takes images {run.image_shape}, but the episodes are of {shape}")
    with progress_bar(name, episodes.count) as show:
        return learner_accuracies(
            run.learner, sampler, episodes=episodes.count, device=run.device, progress=show
        )


def _differences(found: Sequence[NDArray[np.float64] | None]) -> list[Score | None]:
    first = next((a for a in found if a is not None), None)
    return [None if a is None or first is None or a is first else score(a - first) for a in found]


def _described(sampler: EpisodeSampler | None, episodes: EpisodeChoice) -> str:
    if sampler is None:
        return ""
    spec = sampler.spec
    turned = ", upright and rotated classes" if sampler.rotations else ""
    return (
        f"{episodes.count} episodes of {episodes.split}, {spec.way}-way {spec.shot}-shot, "
        f"{spec.query} queries a class, seed {episodes.seed}{turned}"
    )
