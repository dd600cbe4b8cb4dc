"""The glue of a hyper-representation; read this first.

A meta-batch of episodes becomes a bilevel problem (Eqs. 3, 4, 9 and 10 of the paper):

    λ   the representation: backbone, inner step size η and feature scale s
    w   one linear head an episode, from zero
    L   mean cross-entropy of the heads on the support images
    E   mean cross-entropy of the heads on the query images, averaged over episodes; in training the
        labels may be smoothed

The heads never touch the backbone. So the inner loop is differentiated in the features, and one
pull-back takes that hypergradient to the weights (`bilevel_models.features`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from bilevel_apps.episodes import Episodes
from bilevel_core import DivergenceError, Engine, GradientDescent, Problem, hypergradient
from bilevel_models import Encoder, Features, heads

__all__ = [
    "LEARNED_STEP",
    "HyperRepresentation",
    "MetaTask",
    "Outcome",
    "outer_loss",
]

LEARNED_STEP = GradientDescent(step_size=lambda lam, _t: lam["log_lr"].exp())
"""Gradient descent whose step size is part of λ."""


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """E and the mean accuracy on the query images of a meta-batch."""

    loss: float
    accuracy: float


@final
class HyperRepresentation(nn.Module):
    """λ: a backbone, the logarithm of the inner step size, and that of the feature scale."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        inner_lr: float,
        scale: float,
        learn_lr: bool = False,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.log_lr = nn.Parameter(torch.tensor(math.log(inner_lr)), requires_grad=learn_lr)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)


@final
@dataclass(frozen=True, kw_only=True)
class MetaTask:
    """A representation, how it encodes images, and how heads are trained on it.

    Attributes:
        model: λ.
        encoder: the model's backbone with its normalisation.
        steps: T, inner steps.
        engine: how hypergradients are computed; None takes the adjoint of `heads.descend`, which is
            written out by hand. An engine that is exact gives the same gradient, slower.
        parts: in how many parts, one after the other, a meta-batch passes in training. The gradient
            is the same to rounding, unless the episodes share their statistics (batch), and the
            activations of one part are in memory at a time.
        label_smoothing: ε in [0, 1), see `outer_loss`.
    """

    model: HyperRepresentation
    encoder: Encoder
    steps: int
    engine: Engine | None = None
    parts: int = 1
    label_smoothing: float = 0.0

    def hypergradient(self, episodes: Episodes) -> Outcome:
        """Put ∇f_T of a meta-batch into the `grad` of the model's parameters (Algorithm 1).

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.

        Cost: the backbone's forward and backward pass, once over the images, whatever T is.
        """
        self.model.zero_grad()
        outcomes = [self._add(part) for part in episodes.parts(self.parts)]
        return Outcome(
            loss=sum(outcome.loss for outcome in outcomes) / self.parts,
            accuracy=sum(outcome.accuracy for outcome in outcomes) / self.parts,
        )

    def _add(self, episodes: Episodes) -> Outcome:
        """Add the share that a part of the meta-batch has in ∇f_T to the `grad`."""
        features = self.encoder.encode(episodes.support, episodes.query, training=True)
        lam = self._lam(features)
        smoothing = self.label_smoothing
        if self.engine is None:
            found = _by_heads(episodes, lam, self.steps, smoothing)
        else:
            found = _by_engine(episodes, lam, self.steps, smoothing, self.engine)
        share = {name: grad / self.parts for name, grad in found.grad.items()}
        features.pull_back(share["support"], share["query"])
        for name in ("log_lr", "log_scale"):
            parameter = getattr(self.model, name)
            if parameter.requires_grad:
                before = parameter.grad
                parameter.grad = share[name] if before is None else before + share[name]
        correct = heads.accuracy(found.scores, episodes.query_labels)
        return Outcome(loss=float(found.value), accuracy=float(correct.mean()))

    def accuracies(self, episodes: Episodes) -> Tensor:
        """Return the fraction of query images classified right, one an episode, (batch,).

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.
        """
        lam = self._lam(self.encoder.encode(episodes.support, episodes.query, training=False))
        with torch.no_grad():
            scores = _trained_scores(episodes, lam, self.steps)
        return heads.accuracy(scores, episodes.query_labels)

    def _lam(self, features: Features) -> dict[str, Tensor]:
        """Return what the inner loop sees of λ."""
        return {
            "support": features.support,
            "query": features.query,
            "log_lr": self.model.log_lr.detach(),
            "log_scale": self.model.log_scale.detach(),
        }


@final
@dataclass(frozen=True, kw_only=True)
class _Found:
    """E, its gradient in what the inner loop sees of λ, and the query images' logits."""

    value: Tensor
    grad: dict[str, Tensor]
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


def _by_heads(episodes: Episodes, lam: dict[str, Tensor], steps: int, smoothing: float) -> _Found:
    leaves = {name: leaf.requires_grad_() for name, leaf in lam.items()}
    scores = _trained_scores(episodes, leaves, steps)
    value = outer_loss(scores, episodes.query_labels, smoothing)
    loss = float(value.detach())
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the loss on the query images is {loss} after T = {steps} inner steps, although the "
            "heads are finite: lower the step size, or look for features that are not finite"
        )
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    grad = dict(zip(leaves, grads, strict=True))
    return _Found(value=value.detach(), grad=grad, scores=scores.detach())


def _by_engine(
    episodes: Episodes, lam: dict[str, Tensor], steps: int, smoothing: float, engine: Engine
) -> _Found:
    problem = _problem(episodes, smoothing)
    found = hypergradient(problem, LEARNED_STEP, lam, steps=steps, engine=engine)
    scores = _scores(LEARNED_STEP.params(found.state), lam, "query")
    return _Found(value=found.value, grad=found.grad, scores=scores)


def _trained_scores(episodes: Episodes, lam: dict[str, Tensor], steps: int) -> Tensor:
    """Return the query images' logits, (batch, way*query, way), after T steps."""
    targets = heads.one_hot(episodes.support_labels, episodes.way, lam["support"])
    with _divergence():
        head = heads.descend(
            lam["support"],
            targets,
            steps=steps,
            step_size=lam["log_lr"].exp(),
            scale=lam["log_scale"].exp(),
        )
    return _scores(head, lam, "query")


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
            _scores(w, lam, "support"), episodes.support_labels
        ).sum(),
        outer=lambda w, lam: outer_loss(_scores(w, lam, "query"), episodes.query_labels, smoothing),
        init=lambda lam: heads.zeros(lam["support"], episodes.way),
    )


def _scores(head: heads.Head, lam: dict[str, Tensor], images: str) -> Tensor:
    return heads.logits(head, lam[images], lam["log_scale"].exp())
