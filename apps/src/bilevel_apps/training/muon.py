"""Steps along the nearest orthogonal matrix: each direction of a filter bank moves alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonal"]

MOMENTUM = 0.95
RATE = 1.0
"""Of an entry's root mean square to that of the learning rate; five times what matches Adam's."""

# Of the quintic a x + b x³ + c x⁵, which takes singular values to about 1 in few rounds.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5


@final
class Muon(torch.optim.AdamW):
    """Muon for filters and matrices, AdamW for all else.

    A weight of at least two dimensions is taken as one row an output. With its gradient G,

        M ← μ M + (1 − μ) G,   W ← (1 − lr wd) W − lr RATE √max(rows, columns) orth(μ M + (1 − μ) G)

    Cost of a step: fifteen products of matrices of a weight's size, little beside a convolution.

    Source: Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024), with
    Nesterov's momentum; Muon is Scalable for LLM Training (Liu et al., 2025), section 2.2, for the
    factor of the size.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        held = []
        for group in self.param_groups:
            for weight in group["params"]:
                gradient = weight.grad
                if weight.dim() >= 2 and gradient is not None:
                    self._move(weight, gradient, group["lr"], group["weight_decay"])
                    held.append((weight, gradient))
                    weight.grad = None  # so that Adam leaves it alone
        super().step(closure)
        for weight, gradient in held:
            weight.grad = gradient

    def _move(self, weight: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW looks for it where a state is loaded
            state["momentum_buffer"] = torch.zeros_like(weight)
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        rows = gradient.lerp(momentum, MOMENTUM).flatten(1)
        size = RATE * max(rows.shape) ** 0.5
        weight.mul_(1 - lr * weight_decay)
        weight.sub_(orthogonal(rows).view_as(weight), alpha=lr * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about U Vᵀ for a matrix U S Vᵀ of (m, n): singular values between 0.6 and 1.3.

    Those below about a thousandth of the largest may stay smaller. A matrix of zeros stays so.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)  # no singular value is above 1 then
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x
