"""ANIL: the inner loop moves the last layer alone, from a learned start."""

from __future__ import annotations

import math
from typing import Unpack, final

import torch
from torch import Tensor, nn

from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import heads

__all__ = ["Anil"]


@final
class Anil(HeadLearner):
    """Heads by T steps of gradient descent on the cross-entropy, from w_0 = λ.head.

    λ is the backbone and w_0, w the head. With w_0 = 0 it is the hyper-representation.

    Args:
        backbone: h.
        way: classes an episode, in training and after: w_0 has an output for each.
        steps: T.
        step_size: η, on the mean over the support images.
        learn_step_size: learn η, by its logarithm.
        encoding: as of `HeadLearner`.

    Source: Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML (Raghu,
    Raghu, Bengio, Vinyals, 2020), section 4.
    """

    diet = Diet(way=5, shot=1, query=15, episodes=4)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        way: int,
        steps: int = 5,
        step_size: float = 0.1,
        learn_step_size: bool = False,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.way, self.steps = way, steps
        start = torch.empty(self.dim, way)
        nn.init.xavier_uniform_(start)
        self.weight, self.bias = nn.Parameter(start), nn.Parameter(torch.zeros(way))
        self.log_step_size = nn.Parameter(
            torch.tensor(math.log(step_size)), requires_grad=learn_step_size
        )

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head:
        """Return the heads after T steps.

        Raises:
            ValueError: another way than that of w_0.
        """
        if way != self.way:
            raise ValueError(f"way={way}: the learned start has way={self.way}: use that")
        return heads.descend(
            features,
            heads.one_hot(labels, way, features),
            steps=self.steps,
            step_size=self.log_step_size.exp(),
            initial={"weight": self.weight[None], "bias": self.bias[None, None]},
        )
