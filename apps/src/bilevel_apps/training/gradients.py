"""The gradients that a learner has on a meta-batch, which may pass in parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from bilevel_meta.episodes import Episodes
from bilevel_meta.learner import Learner

__all__ = ["OuterStep", "outer_steps"]


@final
@dataclass(frozen=True, kw_only=True)
class OuterStep:
    """What an outer step begins from, beside its gradient.

    Attributes:
        loss: of the meta-batch.
        accuracy: the mean over the images that the loss is of; NaN where it is not one of
            classification.
        stop: whether one of several processes that share the meta-batch was asked to stop.
    """

    loss: float
    accuracy: float
    stop: bool = False


def outer_steps(learner: Learner, episodes: Episodes, parts: int = 1) -> Iterator[OuterStep]:
    """Yield once for each loss of a meta-batch, its gradient in the `grad` of the parameters.

    Whoever iterates takes an outer step each time, before asking for more.

    Args:
        learner: λ, which changes while the generator waits.
        episodes: the meta-batch.
        parts: in how many parts, one after the other, it passes. The gradient is the same to
            rounding, unless the episodes share their statistics (batch), and the activations of
            one part are in memory at a time.

    Raises:
        ValueError: the episodes do not divide into as many parts.
        bilevel_core.DivergenceError: the inner runs diverge.
    """
    losses = [learner.losses(part) for part in episodes.parts(parts)]
    while True:
        values: list[float] = []
        accuracies: list[float] = []
        for part in losses:
            loss = next(part, None)
            if loss is None:
                return
            if not values:
                learner.zero_grad()
            (loss / parts).backward()  # type: ignore[no-untyped-call]
            values.append(float(loss.detach()))
            accuracy = learner.accuracy
            accuracies.append(math.nan if accuracy is None else float(accuracy))
        yield OuterStep(loss=sum(values) / parts, accuracy=sum(accuracies) / parts)
