"""An average of the weights over the hyper-iterations, which is scored in their place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bilevel_meta.learner import Learner

__all__ = ["WeightAverage", "weight_average"]


@final
@dataclass(frozen=True, kw_only=True)
class WeightAverage:
    """θ̂_k = (1-d)/(1-d^k) Σ_i d^(k-i) θ_i, of the weights θ_1 … θ_k after each hyper-iteration.

    What a model keeps beside its weights is averaged with them: the running averages of the
    normalisation. The initial weights have no part in it.

    Attributes:
        decay: d in (0, 1): about 1/(1-d) hyper-iterations count.
        learner: the representation with weights θ̂, which nothing else changes.

    Source: Adam: A Method for Stochastic Optimization (Kingma, Ba, 2015), section 7.2.
    """

    decay: float
    learner: Learner
    _averages: list[Tensor]
    _followed: list[Tensor]

    def follow(self, step: int) -> None:
        """Take in the weights after hyper-iteration `step`, from 1.

        Cost: one pass over the weights.
        """
        weight = (1 - self.decay) / (1 - self.decay**step)
        torch._foreach_lerp_(self._averages, self._followed, weight)

    def state(self) -> dict[str, Tensor]:
        """Return θ̂ under the model's own names."""
        return self.learner.state_dict()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a θ̂ that `state` gave."""
        self.learner.load_state_dict(state)


def weight_average(learner: Learner, decay: float) -> WeightAverage:
    """Return an average that follows the weights of a task; at first it equals them."""
    model = copy.deepcopy(learner).requires_grad_(False)
    # A model's state shares its memory, so these lists stay good while the weights change.
    pairs = [
        (mean, tensor)
        for mean, tensor in zip(
            model.state_dict().values(), learner.state_dict().values(), strict=True
        )
        if mean.is_floating_point()
    ]
    return WeightAverage(
        decay=decay,
        learner=model,
        _averages=[mean for mean, _ in pairs],
        _followed=[tensor for _, tensor in pairs],
    )
