"""The inner problem of a meta-batch, in the features that the backbone gave.

    λ as the heads see it: {"support": (batch, n, dim), "query": (batch, m, dim), "log_lr",
    "log_scale"}, the last two being log η and log s

Heads are trained from zero on the support features by T steps, and judged on the query features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from bilevel_core import DivergenceError, Engine, GradientDescent, Problem, hypergradient
from bilevel_meta.episodes import Episodes
from bilevel_models import heads

__all__ = [
    "LEARNED_STEP",
    "Found",
    "InnerLoop",
    "Seen",
    "by_engine",
    "by_heads",
    "outer_loss",
    "trained_scores",
]

LEARNED_STEP = GradientDescent(step_size=lambda lam, _t: lam["log_lr"].exp())
"""Gradient descent whose step size is part of λ."""

Seen: TypeAlias = dict[str, Tensor]


class InnerLoop(NamedTuple):
    """How heads are trained: T steps of size η."""

    steps: int
    lr: float


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """E, its gradient in what the heads see of λ, and the query images' logits."""

    value: Tensor
    grad: Seen
    scores: Tensor


def outer_loss(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return E = (1-ε) mean -log p_y + ε mean -log p_c, the mean over c that of all classes.

    Args:
        scores: logits of the query images, (batch, way*query, way).
        labels: y, (batch, way*query).
        smoothing: ε.

    Source: Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2016),
    section 7.
    """
    loss = heads.cross_entropy(scores, labels).mean()
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * scores.log_softmax(dim=-1).mean()


def by_heads(
    episodes: Episodes, lam: Seen, steps: int, smoothing: float, *, through: bool = True
) -> Found:
    """Return E at w_T and its gradient in λ, by the adjoint of `heads.descend`.

    Args:
        episodes: the labels.
        lam: λ.
        steps: T.
        smoothing: ε of the outer loss.
        through: differentiate w_T too; otherwise ∇_λ w_T is taken as 0, what core calls `Direct`,
            and the support features and the step size get the gradient 0.

    Raises:
        bilevel_core.DivergenceError: the heads or their loss are not finite, or grow without bound.
    """
    leaves = {name: leaf.requires_grad_() for name, leaf in lam.items()}
    with torch.set_grad_enabled(through):
        head = _trained_head(episodes, leaves, steps)
    scores = _scores(head, leaves, "query")
    value = outer_loss(scores, episodes.query_labels, smoothing)
    loss = float(value.detach())
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the loss on the query images is {loss} after T = {steps} inner steps, although the "
            "heads are finite: lower the step size, or look for features that are not finite"
        )
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    grad = dict(zip(leaves, grads, strict=True))
    return Found(value=value.detach(), grad=grad, scores=scores.detach())


def by_engine(episodes: Episodes, lam: Seen, steps: int, smoothing: float, engine: Engine) -> Found:
    """Return what `by_heads` does, by an engine of core."""
    problem = _problem(episodes, smoothing)
    found = hypergradient(problem, LEARNED_STEP, lam, steps=steps, engine=engine)
    scores = _scores(_scaled(LEARNED_STEP.params(found.state), lam), lam, "query")
    return Found(value=found.value, grad=found.grad, scores=scores)


def trained_scores(episodes: Episodes, lam: Seen, steps: int) -> Tensor:
    """Return the query images' logits, (batch, way*query, way), after T steps."""
    return _scores(_trained_head(episodes, lam, steps), lam, "query")


def _trained_head(episodes: Episodes, lam: Seen, steps: int) -> heads.Head:
    targets = heads.one_hot(episodes.support_labels, episodes.way, lam["support"])
    with _divergence():
        return heads.descend(
            lam["support"],
            targets,
            steps=steps,
            step_size=lam["log_lr"].exp(),
            scale=lam["log_scale"].exp(),
        )


@contextmanager
def _divergence() -> Iterator[None]:
    """Let the heads' divergence be core's, so that callers know one."""
    try:
        yield
    except heads.HeadDivergenceError as error:
        raise DivergenceError(str(error)) from error


def _problem(episodes: Episodes, smoothing: float) -> Problem:
    return Problem(
        inner=lambda w, lam: heads.cross_entropy(
            _scores(_scaled(w, lam), lam, "support"), episodes.support_labels
        ).sum(),
        outer=lambda w, lam: outer_loss(
            _scores(_scaled(w, lam), lam, "query"), episodes.query_labels, smoothing
        ),
        init=lambda lam: heads.zeros(lam["support"], episodes.way),
    )


def _scaled(w: heads.Head, lam: Seen) -> heads.Head:
    """Return w as the head of features that λ scales."""
    return {**w, "scale": lam["log_scale"].exp()}


def _scores(head: heads.Head, lam: Seen, images: str) -> Tensor:
    return heads.logits(head, lam[images])
