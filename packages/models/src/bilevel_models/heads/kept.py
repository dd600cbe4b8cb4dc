"""How much of its initial weights a head keeps under weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel_models.heads.guard import refuse_second_derivatives

__all__ = ["kept_fractions"]


def kept_fractions(sizes: Tensor, decay: Tensor, momentum: Tensor) -> Tensor:
    """Return c_0 … c_T, the weight of w_0 in each state, (T + 1,).

    d_{t+1} = μ d_t + ρ c_t,  c_{t+1} = c_t - ε_t d_{t+1},  from c_0 = 1 and d_0 = 0: the recursion
    of w itself, without data. Without momentum it is a product of 1 - ε_t ρ.

    Args:
        sizes: ε, (T,).
        decay: ρ.
        momentum: μ.

    Cost: T steps on numbers, without a graph.
    """
    kept: Tensor = _Kept.apply(sizes, decay, momentum)  # type: ignore[no-untyped-call]
    return kept


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: Tensor, decay: Tensor, momentum: Tensor) -> Tensor:
        ctx.numbers = eps, rho, mu = sizes.tolist(), float(decay), float(momentum)
        c, d = [1.0], [0.0]
        for e in eps:
            d.append(mu * d[-1] + rho * c[-1])
            c.append(c[-1] - e * d[-1])
        ctx.states = c, d
        return sizes.new_tensor(c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse_second_derivatives()
        (eps, rho, mu), (c, d) = ctx.numbers, ctx.states
        cotangents = grad.tolist()
        c_bar, d_bar, rho_bar, mu_bar, eps_bar = cotangents[-1], 0.0, 0.0, 0.0, [0.0] * len(eps)
        for t in reversed(range(len(eps))):
            eps_bar[t] = -c_bar * d[t + 1]
            d_bar = mu * d_bar - eps[t] * c_bar
            rho_bar += d_bar * c[t]
            mu_bar += d_bar * d[t]
            c_bar += rho * d_bar + cotangents[t]
        return grad.new_tensor(eps_bar), grad.new_tensor(rho_bar), grad.new_tensor(mu_bar)
