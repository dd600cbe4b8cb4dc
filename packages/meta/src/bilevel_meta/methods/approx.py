"""Approx: the hypergradient without the inner problem's part in it."""

from __future__ import annotations

from collections.abc import Iterator

from bilevel_meta.episodes import Episodes
from bilevel_meta.task import MetaTask, Outcome

__all__ = ["approx"]


def approx(task: MetaTask, episodes: Episodes) -> Iterator[Outcome]:
    """Yield ∇_λ E(w, λ) at w = w_T, as if w_T did not depend on λ.

    So it is that of the query images' features and of the scale. The inner step size gets the
    gradient 0 and stays what it is, also where it is to be learned.

    Cost: the backbone's forward and backward pass over the images; T steps of the heads without a
    way back.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 5.3.
    """
    yield task.hypergradient(episodes, through=False)
