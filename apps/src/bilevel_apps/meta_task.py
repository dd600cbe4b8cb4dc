"""The glue of a hyper-representation; read this first.

A meta-batch of episodes becomes a bilevel problem (Eqs. 3, 4, 9 and 10 of the paper):

    λ   the representation: backbone, inner step size η and feature scale s
    w   one linear head an episode, from zero
    L   mean cross-entropy of the heads on the support images
    E   mean cross-entropy of the heads on the query images, averaged over episodes

The heads never touch the backbone. So the engine differentiates with respect to the features, and
one pull-back takes its hypergradient to the weights (`bilevel_models.features`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from bilevel_core import Engine, GradientDescent, Problem, Reverse, hypergradient, solve_inner
from bilevel_data import EpisodeBatch
from bilevel_models import Encoder, Features, as_images, heads

__all__ = ["LEARNED_STEP", "Episodes", "HyperRepresentation", "MetaTask", "Outcome", "to_device"]

LEARNED_STEP = GradientDescent(step_size=lambda lam, _t: lam["log_lr"].exp())
"""Gradient descent whose step size is part of λ."""


@final
@dataclass(frozen=True, kw_only=True)
class Episodes:
    """A meta-batch on its device.

    Attributes:
        support: images (batch, way*shot, channels, height, width) in [0, 1].
        query: images (batch, way*query, channels, height, width).
        support_labels: classes 0 … way-1, int64 (batch, way*shot).
        query_labels: likewise, (batch, way*query).
        way: classes an episode.
    """

    support: Tensor
    query: Tensor
    support_labels: Tensor
    query_labels: Tensor
    way: int


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
        engine: how hypergradients are computed.
    """

    model: HyperRepresentation
    encoder: Encoder
    steps: int
    engine: Engine = field(default_factory=Reverse)

    def hypergradient(self, episodes: Episodes) -> Outcome:
        """Put ∇f_T of a meta-batch into the `grad` of the model's parameters (Algorithm 1).

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.

        Cost: the backbone's forward and backward pass, once over the images, whatever T is.
        """
        features = self.encoder.encode(episodes.support, episodes.query, training=True)
        computed = hypergradient(
            _problem(episodes),
            LEARNED_STEP,
            self._lam(features),
            steps=self.steps,
            engine=self.engine,
        )
        self.model.zero_grad()
        features.pull_back(computed.grad["support"], computed.grad["query"])
        for name in ("log_lr", "log_scale"):
            parameter = getattr(self.model, name)
            if parameter.requires_grad:
                parameter.grad = computed.grad[name]
        scores = _scores(LEARNED_STEP.params(computed.state), self._lam(features), "query")
        correct = heads.accuracy(scores, episodes.query_labels)
        return Outcome(loss=float(computed.value), accuracy=float(correct.mean()))

    def accuracies(self, episodes: Episodes) -> Tensor:
        """Return the fraction of query images classified right, one an episode, (batch,).

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.
        """
        lam = self._lam(self.encoder.encode(episodes.support, episodes.query, training=False))
        head = solve_inner(_problem(episodes), LEARNED_STEP, lam, steps=self.steps)
        return heads.accuracy(_scores(head, lam, "query"), episodes.query_labels)

    def _lam(self, features: Features) -> dict[str, Tensor]:
        """Return what the inner loop sees of λ."""
        return {
            "support": features.support,
            "query": features.query,
            "log_lr": self.model.log_lr.detach(),
            "log_scale": self.model.log_scale.detach(),
        }


def to_device(batch: EpisodeBatch, way: int, device: torch.device) -> Episodes:
    """Return sampled pixels as images, and their labels, on a device."""
    return Episodes(
        support=as_images(batch.support, device),
        query=as_images(batch.query, device),
        support_labels=torch.from_numpy(batch.support_labels).to(device),
        query_labels=torch.from_numpy(batch.query_labels).to(device),
        way=way,
    )


def _problem(episodes: Episodes) -> Problem:
    return Problem(
        inner=lambda w, lam: heads.cross_entropy(
            _scores(w, lam, "support"), episodes.support_labels
        ).sum(),
        outer=lambda w, lam: heads.cross_entropy(
            _scores(w, lam, "query"), episodes.query_labels
        ).mean(),
        init=lambda lam: heads.zeros(lam["support"], episodes.way),
    )


def _scores(head: heads.Head, lam: dict[str, Tensor], images: str) -> Tensor:
    return heads.logits(head, lam[images] * lam["log_scale"].exp())
