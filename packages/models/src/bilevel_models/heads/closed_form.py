"""Heads after T steps of gradient descent on the squared loss, at a cost that hardly knows T.

On a quadratic, T steps from zero are a polynomial of its matrix: w_T = f(G) r with
f(x) = ε Σ_{k<T} (1 - ε x)^k. In the eigenbasis of G, and with a = 1 - ε x, everything is a divided
difference of the power x^T, which has no small denominators when its nodes coincide:

    f(x_i)               =  ε  x^T[a_i, 1]
    f[x_i, x_j]          = -ε² x^T[a_i, a_j, 1]
    ∂f/∂ε (x_i)          =  T a_i^{T-1}

The first has a formula, that of the geometric sum; the second is built by doubling,
x^{2T} = x^T · x^T, with the product rule of divided differences.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bilevel_models.heads.checks import (
    HeadDivergenceError,
    check_finite,
    check_sets,
    check_steps,
    precise,
    scalar,
    without_autocast,
)
from bilevel_models.heads.linear import Form, Head, normal_equations
from bilevel_models.refusals import refuse_second_derivatives

__all__ = ["closed_form", "power_differences", "power_sums"]


@precise
def closed_form(
    support: Tensor,
    targets: Tensor,
    *,
    steps: int,
    step_size: Tensor | float,
    scale: Tensor | float = 1.0,
    decay: Tensor | float = 0.0,
    form: Form | None = None,
) -> Head:
    """Return `descend(…, loss=SQUARED)`, from zero and without momentum, without its T steps.

    w_T = f(G + n ρ I) r, where f(x) = (1 - (1 - ε x)^T) / x and ε = η / n; G and r are K and y
    (Gram form) or Xᵀ X and Xᵀ y (primal form) with X = [s h, 1]. The result can be differentiated
    once in every tensor that is passed.

    Args:
        support: features h, (batch, n, dim).
        targets: y, (batch, n, way), of the features' dtype.
        steps: T.
        step_size: η.
        scale: s; the head carries it.
        decay: ρ, of weights and bias.
        form: whose matrix is taken; None takes the smaller.

    Raises:
        TypeError, ValueError: arguments whose dtype or shape do not fit.
        HeadDivergenceError: the features are not finite, or the run grows without bound.

    Cost: one eigendecomposition, p³ with p = min(n, dim + 1), and p² log T for the gradient; memory
    of a few p².

    Source: Matrix Analysis (Bhatia, 1997), section V.3, the derivative of a matrix function by
    divided differences.
    """
    check_steps(steps)
    check_sets(support, targets)
    equations = normal_equations(support, targets, scalar(scale, "scale", support), form)
    matrix = equations.decayed(scalar(decay, "decay", support))
    check_finite(matrix)
    eps = scalar(step_size, "step_size", support) / support.shape[1]
    solution: Tensor = _Descent.apply(matrix, equations.right, eps, steps)  # type: ignore[no-untyped-call]
    return equations.head(solution)


def power_sums(y: Tensor, steps: int) -> Tensor:
    """Return Σ_{k<T} (1 - y)^k = (1 - (1 - y)^T) / y, elementwise, at the same cost for all T."""
    near = -torch.expm1(steps * torch.log1p(-y))  # keeps the digits of a small y
    rise = torch.where(y < 0.5, near, 1 - (1 - y) ** steps)
    return torch.where(y == 0, steps, rise / y)


def power_differences(a: Tensor, steps: int) -> Tensor:
    """Return x^T[a_i, a_j, 1], (batch, p, p), of nodes a, (batch, p).

    Only sums and products, so that equal nodes are as good as any others. With P = x^t,
    P²[a, b, 1] = P(a) P[a, b, 1] + P[a, b] P[b, 1] + P[a, b, 1] P(1), and likewise for x P.
    """
    node = torch.cat((a, torch.ones_like(a[:, :1])), dim=1)[..., None]
    # At t = 1. Views follow `power` and `d`, which change in place: P(b), and P[b, 1] as a row.
    power = node.clone()
    d = torch.ones_like(node * node.mT)
    e = torch.zeros_like(d)
    across, s = power.mT, d[:, -1:]
    for bit in f"{steps:b}"[1:]:
        e.mul_(power + 1).addcmul_(d, s)
        d.mul_(power + across)
        power.square_()
        if bit == "1":
            torch.addcmul(s, e, node, out=e)
            torch.addcmul(across, d, node, out=d)
            power.mul_(node)
    return e[:, :-1, :-1]


class _Descent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, right: Tensor, eps: Tensor, steps: int) -> Tensor:
        x, basis = torch.linalg.eigh(matrix)
        y = eps * x
        a = 1 - y
        _check_growth(a, steps)
        f, r = eps * power_sums(y, steps), basis.mT @ right
        ctx.steps = steps
        ctx.save_for_backward(a, basis, f, r, eps)
        solution: Tensor = basis @ (f[..., None] * r)
        return solution

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        refuse_second_derivatives()
        a, basis, f, r, eps = ctx.saved_tensors
        with without_autocast(grad):
            g, steps = basis.mT @ grad, ctx.steps
            inner = power_differences(a, steps) * (g @ r.mT) * -eps.square()
            by_eps = steps * a ** max(steps - 1, 0) * (g * r).sum(dim=-1)
            return basis @ inner @ basis.mT, basis @ (f[..., None] * g), by_eps.sum(), None


def _check_growth(a: Tensor, steps: int) -> None:
    """Refuse runs whose last step is 1/ε times the first (as `descend`), by their largest |a|."""
    rate, limit = float(a.abs().max()), -math.log(torch.finfo(a.dtype).eps)
    # Written so that a rate that is no number is refused.
    if not (rate <= 1 or (steps - 1) * math.log(rate) <= limit):
        raise HeadDivergenceError(
            f"the heads' training grows without bound, {rate:.4g} times a step for T = {steps} "
            "steps: lower the step size below 2 / (largest curvature of the inner objective)"
        )
