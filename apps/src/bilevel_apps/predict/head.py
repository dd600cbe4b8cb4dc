"""Which head labels a person's pictures: the run's own, or another that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bilevel_apps.errors import InputError
from bilevel_apps.runs.load import TrainedRun
from bilevel_apps.runs.optimum import know_optimum
from bilevel_meta.adapt import FewShotLearner, OtherLearner, learner_of
from bilevel_meta.methods.hyper_representation import InnerLoop, inner_of

__all__ = ["inner_used", "with_head"]


def with_head(
    run: TrainedRun,
    *,
    steps: tuple[int | None, ...] = (),
    step_size: float | None = None,
    data: Path | None = None,
) -> FewShotLearner | OtherLearner:
    """Return what adapts to images as a run does, with another head if asked.

    Args:
        run: the run.
        steps: T, or None for the optimum; () takes the run's own.
        step_size: η; None takes the run's own.
        data: a store that may be the run's, where the optimum has to be estimated.

    Raises:
        InputError: the run has no such head.
        bilevel_data.DataError: its store is damaged.
    """
    if not steps and step_size is None:
        return learner_of(run.learner)
    if len(steps) > 1:
        raise InputError("several T: pictures are labelled with one: give one of them")
    if steps == (None,):
        know_optimum(run, data)
    learner = learner_of(run.learner)
    if not isinstance(learner, FewShotLearner):
        raise InputError(
            f"{run.path}: method={run.config.method} has no head of T steps or of an optimum to "
            "choose: leave steps and step size as they are"
        )
    taken = steps[0] if steps else learner.steps
    if step_size is not None and taken is None:
        raise InputError(
            f"step size {step_size:g}: heads are solved to their optimum, which takes no steps: "
            "give steps too, or leave it out"
        )
    eta = learner.step_size if step_size is None else step_size
    return replace(learner, steps=taken, step_size=eta)


def inner_used(run: TrainedRun, learner: FewShotLearner | OtherLearner) -> InnerLoop:
    """Return T and η of what `with_head` gave."""
    if isinstance(learner, FewShotLearner):
        return InnerLoop(learner.steps, learner.step_size)
    return inner_of(run.learner)
