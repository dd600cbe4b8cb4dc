"""Accuracy against T and η, how many inner steps of what size, on the same episodes (Figure 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bilevel_apps.evaluate.report import CurvePoint
from bilevel_apps.scoring.heads import HeadScores
from bilevel_apps.scoring.score import score
from bilevel_meta.methods.hyper_representation import InnerLoop

__all__ = ["best_of", "by_steps", "curve_of"]


def curve_of(
    found: HeadScores, own: InnerLoop, upright: HeadScores | None = None
) -> tuple[CurvePoint, ...]:
    """Return for each η and T the accuracy and its difference to the run's own.

    The difference is taken episode by episode, so that what episodes have in common (a hard one is
    hard for every T) is not in its interval.

    Args:
        found: accuracies of the same episodes; those with the run's own T and η among them.
        own: the run's own.
        upright: accuracies on upright classes alone, where others count too: a row has both.
    """
    loops = sorted({*found.accuracies, *found.diverged}, key=lambda at: (at.lr, *by_steps(at)))
    return tuple(_point(loop, found, own, upright) for loop in loops)


def _point(
    loop: InnerLoop, found: HeadScores, own: InnerLoop, upright: HeadScores | None
) -> CurvePoint:
    if loop in found.diverged:
        return CurvePoint(inner=loop)
    values = found.accuracies[loop]
    alone = None if upright is None else upright.accuracies.get(loop)
    return CurvePoint(
        inner=loop,
        score=score(values),
        difference=score(values - found.accuracies[own]),
        upright=None if alone is None else score(alone),
    )


def by_steps(loop: InnerLoop) -> tuple[float, float]:
    """Return what sorts loops by T, the optimum last, and by η."""
    return math.inf if loop.steps is None else loop.steps, loop.lr


def best_of(curve: Sequence[CurvePoint], own: InnerLoop) -> CurvePoint:
    """Return the point of highest accuracy; of equal ones the run's own, or one of fewest steps."""

    def order(point: CurvePoint) -> tuple[float, bool, float, bool]:
        accuracy = -math.inf if point.score is None else point.score.accuracy
        same_size = point.inner.lr == own.lr
        return accuracy, point.inner == own, -by_steps(point.inner)[0], same_size

    return max(curve, key=order)
