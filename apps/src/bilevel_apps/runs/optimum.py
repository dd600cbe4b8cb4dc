"""What fits a run's heads to their optimum, estimated after its training."""

from __future__ import annotations

from pathlib import Path

from bilevel_apps.runs.load import TrainedRun
from bilevel_apps.system.terminal import say
from bilevel_data import ImageSplit, VariedSampler, VariedSpec
from bilevel_meta.estimation import estimated_solver

__all__ = ["know_optimum"]

MOST_CLASSES, MOST_IMAGES, QUERIES = 10, 10, 5  # of the episodes that the numbers are learned on


def know_optimum(run: TrainedRun, data: Path | None = None, *, again: bool = False) -> None:
    """Give a run what fits heads to their optimum, if it has none, and say so.

    It is estimated from the classes of its training and validation, on which nothing is tested.

    Args:
        run: its learner is changed.
        data: a store; where it is not the run's own, that one is looked for where it was.
        again: in the place of what it has: what was learned on the episodes of a training knows
            classes that the backbone has learned, and is too sure of others.

    Raises:
        InputError: the method has no such heads, or the run's store is not found.
        bilevel_data.DataError: the store is damaged.
    """
    learner = run.representation
    if learner.solver is not None and not again:
        return
    store = run.store(data if data is not None and run.is_own(data) else None)
    rotations = bool(run.config.episode.rotations)
    samplers = [_sampler(store.load(name), rotations) for name in ("train", "val")]
    say(
        f"{run.path}: trained with {run.trained_inner}: what fits heads to their optimum is "
        "estimated from the classes of its training and validation"
    )
    learner.solver = estimated_solver(learner, *samplers)


def _sampler(split: ImageSplit, rotations: bool) -> VariedSampler:
    """Return episodes of many sizes."""
    classes, least = split.num_classes * (4 if rotations else 1), int(split.class_sizes.min())
    query = max(1, min(QUERIES, least // 3))
    return VariedSampler(
        split,
        VariedSpec(
            way=(2, min(MOST_CLASSES, classes)),
            shot=(1, max(1, min(MOST_IMAGES, least - query))),
            query=query,
        ),
        seed=0,
        rotations=rotations,
    )
