"""The glue of a hyper-representation; read this first.

A meta-batch of episodes becomes a bilevel problem (Eqs. 3, 4, 9 and 10 of the paper):

    λ   the representation: backbone, inner step size η and feature scale s
    w   one linear head an episode, from zero
    L   mean cross-entropy of the heads on the support images
    E   mean cross-entropy of the heads on the query images, averaged over episodes; in training the
        labels may be smoothed

The heads never touch the backbone. So the inner loop is differentiated in the features
(`inner_problem.py`), and one pull-back takes that hypergradient to the weights
(`bilevel_models.encoder`). `methods/` has what else a meta-batch can do to λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from bilevel_core import Engine
from bilevel_meta.episodes import Episodes
from bilevel_meta.inner_problem import (
    LEARNED_STEP,
    InnerLoop,
    Seen,
    by_engine,
    by_heads,
    outer_loss,
    trained_scores,
)
from bilevel_models import Encoder, Features, heads

__all__ = [
    "LEARNED_STEP",
    "Encode",
    "HyperRepresentation",
    "MetaTask",
    "Outcome",
    "encode_apart",
    "outer_loss",
]

Encode: TypeAlias = Callable[[Encoder, Episodes], Features]
"""How the images of a meta-batch become features in training."""


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outer objective, and the mean accuracy on the images of a meta-batch that it is of."""

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

    @torch.no_grad()
    def set_lr(self, lr: float) -> None:
        """Make η another one."""
        self.log_lr.fill_(math.log(lr))


def encode_apart(encoder: Encoder, episodes: Episodes) -> Features:
    """Return the features of support and query images, each image encoded once."""
    return encoder.encode(episodes.support, episodes.query, training=True)


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

    @property
    def inner(self) -> InnerLoop:
        """Return T, and η as it is now."""
        return InnerLoop(self.steps, float(self.model.log_lr.detach().exp()))

    def hypergradient(
        self, episodes: Episodes, *, through: bool = True, encode: Encode = encode_apart
    ) -> Outcome:
        """Put ∇f_T of a meta-batch into the `grad` of the model's parameters (Algorithm 1).

        Args:
            episodes: the meta-batch.
            through: False takes ∇_λ w_T as 0.
            encode: gives the features of the support and the query images.

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.

        Cost: the backbone's forward and backward pass, once over the images, whatever T is.
        """
        return self.accumulated(
            self._add(part, encode(self.encoder, part), through)
            for part in episodes.parts(self.parts)
        )

    def accumulated(self, parts: Iterable[Outcome]) -> Outcome:
        """Return the mean of what the parts of a meta-batch come to.

        Args:
            parts: an iterator; each step of it adds the share of one part of `parts` to the `grad`,
                which is empty before the first.
        """
        self.model.zero_grad()
        outcomes = list(parts)
        return Outcome(
            loss=sum(outcome.loss for outcome in outcomes) / self.parts,
            accuracy=sum(outcome.accuracy for outcome in outcomes) / self.parts,
        )

    def add_scalar(self, name: str, share: Tensor) -> None:
        """Add to the `grad` of `log_lr` or `log_scale`, if it is learned."""
        parameter = getattr(self.model, name)
        if parameter.requires_grad:
            before = parameter.grad
            parameter.grad = share if before is None else before + share

    def _add(self, episodes: Episodes, features: Features, through: bool) -> Outcome:
        """Add the share that a part of the meta-batch has in the gradient to the `grad`."""
        lam, smoothing = self._lam(features), self.label_smoothing
        if self.engine is None or not through:
            found = by_heads(episodes, lam, self.steps, smoothing, through=through)
        else:
            found = by_engine(episodes, lam, self.steps, smoothing, self.engine)
        share = {name: grad / self.parts for name, grad in found.grad.items()}
        features.pull_back(share["support"], share["query"])
        for name in ("log_lr", "log_scale"):
            self.add_scalar(name, share[name])
        correct = heads.accuracy(found.scores, episodes.query_labels)
        return Outcome(loss=float(found.value), accuracy=float(correct.mean()))

    def accuracies(self, episodes: Episodes) -> Tensor:
        """Return the fraction of query images classified right, one an episode, (batch,).

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.
        """
        lam = self._lam(self.encoder.encode(episodes.support, episodes.query, training=False))
        with torch.no_grad():
            scores = trained_scores(episodes, lam, self.steps)
        return heads.accuracy(scores, episodes.query_labels)

    def _lam(self, features: Features) -> Seen:
        """Return what the inner loop sees of λ."""
        return {
            "support": features.support,
            "query": features.query,
            "log_lr": self.model.log_lr.detach(),
            "log_scale": self.model.log_scale.detach(),
        }
