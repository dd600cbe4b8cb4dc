"""MetaOptNet: a support vector machine as the inner problem."""

from __future__ import annotations

import math
from typing import Unpack, final

import torch
from torch import Tensor, nn

from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_meta.support_vectors import crammer_singer
from bilevel_models import heads

__all__ = ["SupportVectors"]


@final
class SupportVectors(HeadLearner):
    """Logits s Σ_i α_ij ⟨h(x_i), h(x)⟩, with α the solution of the dual problem.

    λ is the backbone and s, w the dual variables, L the support vector machine's objective, E the
    cross-entropy. The derivative is that of the optimality conditions, not of the solver's steps.

    Args:
        backbone: h.
        bound: C.
        scale: s at first.
        encoding: as of `HeadLearner`.

    Source: Meta-Learning with Differentiable Convex Optimization (Lee, Maji, Ravichandran, Soatto,
    2019), section 3.
    """

    diet = Diet(way=5, shot=15, query=6, episodes=8)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        bound: float = 0.1,
        scale: float = 1.0,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.bound = bound
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head:
        """Return the primal head of the solution; it has no bias."""
        targets = heads.one_hot(labels, way, features)
        alpha = crammer_singer(features @ features.mT, targets, bound=self.bound)
        weight = features.mT @ alpha * self.log_scale.exp()
        return {"weight": weight, "bias": weight.new_zeros(len(weight), 1, way)}
