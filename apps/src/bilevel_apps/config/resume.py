"""What a resumed run may change of its configuration."""

from __future__ import annotations

from bilevel_apps.config.schema import TrainSection

__all__ = ["may_change"]

FOLLOW_LENGTH = ("cosine", "onecycle")
"""Schedules whose rates depend on how many hyper-iterations the run has."""


def may_change(train: TrainSection) -> tuple[str, ...]:
    """Return the keys that decide where a run ends and not how it gets there: a resume's choice."""
    steps = () if train.schedule in FOLLOW_LENGTH or train.small else ("train.steps",)
    return ("train.minutes", *steps)
