"""The optimiser of the weights, its rate, and the average of what it comes to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from bilevel_apps.config import TrainSection
from bilevel_apps.training.muon import Muon
from bilevel_meta.learner import Learner

__all__ = [
    "clipped_norm",
    "learning_rate",
    "load_optimizer",
    "make_optimizer",
    "optimizer_tensors",
    "weight_average",
]

WARM_UP = 0.3  # the part of a one-cycle run in which the rate rises
START, END = 1 / 25, 1e-5  # first (one-cycle) and last rate, as fractions of the peak
Tensors = tuple[Tensor, ...] | list[Tensor]

MOMENTUM = 0.9  # of sgd

# What torch keeps of a parameter once it has moved it.
ADAM_STATE = frozenset({"step", "exp_avg", "exp_avg_sq"})
MOMENTUM_STATE = frozenset({"momentum_buffer"})


def make_optimizer(train: TrainSection, model: Learner) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters that are learned.

    Weight decay is on the backbone alone; adamw without it is the paper's plain Adam.

    Source: Decoupled Weight Decay Regularization (Loshchilov, Hutter, 2019), Algorithm 2; On the
    importance of initialization and momentum in deep learning (Sutskever et al., 2013), section 2,
    for Nesterov's momentum.
    """
    backbone = list(cast("torch.nn.Module", model.backbone).parameters())
    own = {id(parameter) for parameter in backbone}
    others = [p for p in model.parameters() if id(p) not in own and p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": backbone, "weight_decay": train.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=MOMENTUM, nesterov=True)
    return (Muon if train.optimizer == "muon" else torch.optim.AdamW)(groups, lr=train.lr)


def learning_rate(
    schedule: Literal["constant", "paper", "cosine", "onecycle"], lr: float, step: int, steps: int
) -> float:
    """Return the learning rate of hyper-iteration `step` (from 0) of `steps`.

    constant: lr. paper: lr / (1 + 1e-5 step), with the rate of its Appendix D in the form of its
    code. cosine: by half a cosine from lr down to 1e-5 lr. onecycle: by half a cosine from lr/25 up
    to lr in the first 30 % of the run, then by another down to 1e-5 lr.

    All follow the number of hyper-iterations: a run that ends earlier has not come to its lowest
    rate.

    Source: Super-Convergence (Smith, Topin, 2019), section 3, for the shape of onecycle; the
    momentum is left alone here. SGDR (Loshchilov, Hutter, 2017), Eq. 5, for cosine, without
    restarts.
    """
    if schedule == "paper":
        return lr / (1 + 1e-5 * step)
    if schedule == "constant":
        return lr
    position = step / max(1, steps - 1)
    if schedule == "cosine":
        return lr * _cosine(1.0, END, position)
    if position < WARM_UP:
        return lr * _cosine(START, 1.0, position / WARM_UP)
    return lr * _cosine(1.0, END, (position - WARM_UP) / (1 - WARM_UP))


def _cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2


def clipped_norm(model: Learner, longest: float | None) -> float:
    """Return the norm of the gradient of all parameters together, and shorten it to `longest`.

    Source: On the difficulty of training recurrent neural networks (Pascanu, Mikolov, Bengio,
    2013), Algorithm 1.
    """
    moved = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None])
    if longest is not None:
        torch.nn.utils.clip_grads_with_norm_(moved, longest, norm)
    return float(norm)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as `PARAMETER.KEY`, the parameter by its number."""
    return {
        f"{index}.{key}": tensor
        for index, state in optimizer.state_dict()["state"].items()
        for key, tensor in state.items()
        if tensor is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Go back to a state that `optimizer_tensors` gave.

    Raises:
        ValueError: the names or the shapes are not those of this optimiser's state.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = [_kept_of(optimizer, parameter) for parameter in parameters]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(\d{1,9})\.(\w+)", name)
        if (
            match is None
            or int(match[1]) >= len(parameters)
            or match[2] not in known[int(match[1])]
        ):
            raise ValueError(f"the optimiser has no state {name}")
        index, key = int(match[1]), match[2]
        shape = torch.Size() if key == "step" else parameters[index].shape
        if tensor.shape != shape:
            raise ValueError(
                f"the optimiser's {name}: expected shape {tuple(shape)}, found "
                f"{tuple(tensor.shape)}"
            )
        state.setdefault(index, {})[key] = tensor
    for index, held in state.items():
        if missing := known[index] - held.keys():
            raise ValueError(f"the optimiser lacks {index}.{min(missing)}")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _kept_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> frozenset[str]:
    """Return what the optimiser keeps of a parameter."""
    if isinstance(optimizer, torch.optim.SGD):
        return MOMENTUM_STATE
    filters = isinstance(optimizer, Muon) and parameter.dim() >= 2
    return MOMENTUM_STATE | {"step"} if filters else ADAM_STATE


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

    def follow(means: Tensors, weights: Tensors, count: Tensor | int) -> None:
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, weights, (1 - decay) / (1 - decay ** (int(count) + 1)))
        else:
            torch._foreach_copy_(means, weights)

    average = AveragedModel(learner, multi_avg_fn=follow, use_buffers=True)
    average.module.requires_grad_(False)
    return average
