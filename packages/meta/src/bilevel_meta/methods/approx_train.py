"""Approx-train: neither a validation set nor the inner problem's part in the hypergradient."""

from __future__ import annotations

from collections.abc import Iterator

from bilevel_meta.episodes import Episodes
from bilevel_meta.methods.one_set import encode_as_one
from bilevel_meta.task import MetaTask, Outcome

__all__ = ["approx_train"]


def approx_train(task: MetaTask, episodes: Episodes) -> Iterator[Outcome]:
    """Yield ∇_λ E(w, λ) at w = w_T, as if w_T did not depend on λ, with D_val = D_tr.

    D_tr are the support and the query images of an episode together. The inner step size gets the
    gradient 0 and stays what it is, also where it is to be learned.

    Cost: the backbone's forward and backward pass over the images; T steps of the heads without a
    way back.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 5.3.
    """
    yield task.hypergradient(episodes.united(), through=False, encode=encode_as_one)
