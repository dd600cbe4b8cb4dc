"""An average of the weights over the hyper-iterations, which is scored in their place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from bilevel_meta.learner import Learner

__all__ = ["weight_average"]


def weight_average(learner: Learner, decay: float) -> AveragedModel:
    """Return what follows the weights θ_k after each hyper-iteration, by `update_parameters`.

    θ̂_k = (1-d)/(1-d^k) Σ_i d^(k-i) θ_i. What a model keeps beside its weights is averaged with
    them: the running averages of the normalisation. The initial weights have no part in it.

    Args:
        learner: has the weights; its copy `module` has θ̂.
        decay: d in (0, 1): about 1/(1-d) hyper-iterations count.

    Cost: one pass over the weights, each time.

    Source: Adam: A Method for Stochastic Optimization (Kingma, Ba, 2015), section 7.2.
    """

    def follow(means: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, weights, (1 - decay) / (1 - decay ** (int(count) + 1)))
        else:
            torch._foreach_copy_(means, weights)

    average = AveragedModel(learner, multi_avg_fn=follow, use_buffers=True)
    average.module.requires_grad_(False)
    return average
