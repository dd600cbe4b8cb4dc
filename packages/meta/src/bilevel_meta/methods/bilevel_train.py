"""Bilevel-train: no validation set inside an episode."""

from __future__ import annotations

from collections.abc import Iterator

from bilevel_meta.episodes import Episodes
from bilevel_meta.methods.one_set import encode_as_one
from bilevel_meta.task import MetaTask, Outcome

__all__ = ["bilevel_train"]


def bilevel_train(task: MetaTask, episodes: Episodes) -> Iterator[Outcome]:
    """Yield ∇f_T with D_val = D_tr, support and query images of an episode together.

    Cost: the backbone's forward and backward pass over the images, whatever T is.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 5.3.
    """
    yield task.hypergradient(episodes.united(), encode=encode_as_one)
