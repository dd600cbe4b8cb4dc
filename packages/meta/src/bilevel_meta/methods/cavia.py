"""CAVIA: the inner loop moves a few context numbers, the network is shared."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor, nn

from bilevel_core import GradientDescent, Problem, Unrolled, solve_inner
from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import heads

__all__ = ["Cavia"]


@final
class Cavia(HeadLearner):
    """Logits ((1 + A φ) ∘ h + B φ) W + b, φ by T steps on the support loss from zero.

    λ is the backbone, A, B, W and b; w is φ, whose few numbers modulate the features. The paper
    modulates a convolution inside the network; behind it, each image is encoded once. Runs of all
    episodes are one: the gradient of the sum of their losses in φ of one is that of its own.

    Args:
        backbone: h.
        way: classes an episode.
        context: numbers of φ.
        steps: T.
        step_size: η, on the mean over the support images.
        encoding: as of `HeadLearner`.

    Source: Fast Context Adaptation via Meta-Learning (Zintgraf, Shiarli, Kurin, Hofmann, Whiteson,
    2019), Eqs. 3 to 5.
    """

    diet = Diet(way=5, shot=1, query=15, episodes=4)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        way: int,
        context: int = 100,
        steps: int = 2,
        step_size: float = 1.0,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.way, self.steps, self.context = way, steps, context
        self.head = nn.Linear(self.dim, way)
        self.film = nn.Linear(context, 2 * self.dim, bias=False)
        self.problem = Problem(inner=_support_loss, outer=_support_loss, init=_zero)
        self.dynamics = GradientDescent(step_size=step_size)

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head:
        """Return the linear head that φ_T makes of W and b.

        Raises:
            ValueError: another way than that of W.
        """
        if way != self.way:
            raise ValueError(f"way={way}: the learned last layer has way={self.way}: use that")
        lam = {
            "features": features,
            "film": self.film.weight,
            "weight": self.head.weight,
            "bias": self.head.bias,
        }
        if not torch.is_grad_enabled():
            lam = {name: leaf.detach() for name, leaf in lam.items()}
        phi = solve_inner(
            self.problem, self.dynamics, lam, labels, steps=self.steps, engine=Unrolled()
        )
        return _head(phi, lam)


def _head(phi: Tensor, lam: dict[str, Tensor]) -> heads.Head:
    """Return W_e = (1 + A φ) ∘ W and b_e = b + W B φ, of φ (episodes, context)."""
    scale, shift = (phi @ lam["film"].mT).chunk(2, dim=-1)
    weight = lam["weight"].mT
    bias = lam["bias"] + shift @ weight
    return {"weight": (1 + scale).unsqueeze(-1) * weight, "bias": bias.unsqueeze(1)}


def _support_loss(phi: Tensor, lam: dict[str, Tensor], labels: Tensor) -> Tensor:
    scores = heads.logits(_head(phi, lam), lam["features"])
    return heads.cross_entropy(scores, labels).sum()


def _zero(lam: dict[str, Tensor], labels: Tensor) -> Tensor:
    del labels
    return lam["features"].new_zeros(len(lam["features"]), lam["film"].shape[1])
