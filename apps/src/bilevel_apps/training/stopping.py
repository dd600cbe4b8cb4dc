"""When a training has done enough, and why it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from bilevel_apps.config import TrainSection
from bilevel_apps.runs.record import Ending

__all__ = ["Stopwatch", "describe_ending", "finished", "out_of_patience"]


@final
@dataclass
class Stopwatch:
    """The seconds that a run has taken: those before a resume, and those since.

    Attributes:
        before: seconds.
        now: a clock that only goes forward, in seconds.
        since: what it showed when this process began.
    """

    before: float = 0.0
    now: Callable[[], float] = time.monotonic
    since: float = field(init=False)

    def __post_init__(self) -> None:
        self.since = self.now()

    def seconds(self) -> float:
        """Return how long the run has taken so far."""
        return self.before + self.now() - self.since


def finished(train: TrainSection, step: int, seconds: float) -> Ending | None:
    """Say whether the hyper-iterations or the minutes of a run are used up, after `step` of them.

    Where both are, the hyper-iterations ended it.
    """
    if step >= train.steps:
        return Ending.STEPS
    if train.minutes is not None and seconds >= 60 * train.minutes:
        return Ending.MINUTES
    return None


def out_of_patience(train: TrainSection, step: int, best_step: int) -> Ending | None:
    """Say whether the validation after `step`, just made, was one too many without a better one.

    Args:
        train: has the patience.
        step: hyper-iterations done.
        best_step: those that were done when the best validation was made.

    Source: Deep Learning (Goodfellow, Bengio, Courville, 2016), Algorithm 7.1.
    """
    without = (step - best_step) // train.validate_every
    patient = train.patience is None or without < train.patience
    return None if patient else Ending.PATIENCE


def describe_ending(ending: Ending, train: TrainSection, step: int) -> str:
    """Return why a run ended after `step` hyper-iterations, for people."""
    if ending is Ending.STEPS:
        return f"ended: all {train.steps} hyper-iterations are done"
    where = f"ended at hyper-iteration {step} of {train.steps}"
    if ending is Ending.MINUTES:
        return f"{where}: train.minutes={train.minutes:g} are over"
    return f"{where}: no better validation in train.patience={train.patience}"
