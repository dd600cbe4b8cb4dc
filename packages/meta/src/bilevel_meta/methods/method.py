"""The contract of a meta-learning method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from bilevel_meta.episodes import Episodes
from bilevel_meta.task import MetaTask, Outcome

__all__ = ["Method"]


class Method(Protocol):
    """What a hyper-iteration does to λ.

    A generator: each time that it yields, the `grad` of the model's parameters is that of the next
    outer step, and whoever iterates over it takes that step, whatever the optimiser, before asking
    for more. So a method may take several outer steps on a meta-batch, and knows nothing of
    clipping, processes or the learning rate.

    What it does is a function of the weights and the meta-batch alone; it keeps nothing for the
    next hyper-iteration.
    """

    def __call__(self, task: MetaTask, episodes: Episodes) -> Iterator[Outcome]:
        """Yield what each outer step begins from, with its gradient in place.

        Args:
            task: λ, which changes while the generator waits; T; and in how many parts a meta-batch
                passes.
            episodes: the meta-batch.

        As many times for any meta-batch, so that processes that divide one agree.

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.
        """
        ...
