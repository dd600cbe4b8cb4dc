"""Hyper-representation: the paper's own method."""

from __future__ import annotations

from collections.abc import Iterator

from bilevel_meta.episodes import Episodes
from bilevel_meta.task import MetaTask, Outcome

__all__ = ["hyper_representation"]


def hyper_representation(task: MetaTask, episodes: Episodes) -> Iterator[Outcome]:
    """Yield ∇f_T: heads are trained on the support images and judged on the query images.

    Cost: the backbone's forward and backward pass over the images, whatever T is.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Algorithm 1 and section 4.
    """
    yield task.hypergradient(episodes)
