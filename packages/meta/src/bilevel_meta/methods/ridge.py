"""R2-D2: ridge regression as the inner problem, solved exactly."""

from __future__ import annotations

import math
from typing import Unpack, final

import torch
from torch import Tensor, nn

from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import heads

__all__ = ["Ridge"]


@final
class Ridge(HeadLearner):
    """Logits a (h W + b), with W and b those of ridge regression on the one-hot labels.

    λ is the backbone, the decay ρ and the factor a; w is the head, L the penalised squared error,
    E the cross-entropy. The paper's code holds ρ fixed and learns an offset of all logits too,
    which no class profits from.

    Args:
        backbone: h.
        decay: ρ at first, as of `heads.ridge`.
        factor: a at first.
        learn_decay: learn ρ, by its logarithm.
        encoding: as of `HeadLearner`.

    Source: Meta-learning with Differentiable Closed-Form Solvers (Bertinetto, Henriques, Torr,
    Vedaldi, 2019), Eqs. 4 to 7.
    """

    diet = Diet(way=16, shot=(1, 9), query=5, episodes=1)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        decay: float = 1.0,
        factor: float = 10.0,
        learn_decay: bool = True,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.log_decay = nn.Parameter(torch.tensor(math.log(decay)), requires_grad=learn_decay)
        self.log_factor = nn.Parameter(torch.tensor(math.log(factor)))

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head:
        """Return the solution, times a."""
        targets = heads.one_hot(labels, way, features)
        head = heads.ridge(features, targets, decay=self.log_decay.exp())
        return {name: leaf * self.log_factor.exp() for name, leaf in head.items()}
