"""A trained learner whose features are averaged over small shifts of each image."""

from __future__ import annotations

from typing import TypeVar

from bilevel_meta.learner import HeadLearner
from bilevel_models.backbones.shift_averaged import ShiftAveraged

__all__ = ["over_shifts"]

L = TypeVar("L", bound=HeadLearner)


def over_shifts(learner: L, pixels: int) -> L:
    """Return a learner of the same λ, which both share, with features as `ShiftAveraged` has them.

    Inductive, and for tests: nothing is trained with it.

    Args:
        learner: what is tested.
        pixels: how far each image is moved, ≥ 1; 0 gives the learner back.

    Cost: nine passes through the backbone in the place of one.
    """
    if pixels == 0:
        return learner
    return learner.behind(ShiftAveraged(learner.backbone, pixels))
