"""Heads at the optimum of their inner problem, and their hypergradient by the implicit function.

    L(W) = Σ_i c_i ℓ(h_i W + b, y_i) + (ρ/2) ‖W - W⁰‖²

At the optimum W = W⁰ + hᵀ A, with A the zero of F in newton.py. A cotangent ā of A gives, with
J u = H ā solved as a Newton step is, and v = (ā - K u) / ρ, so that u = H v,

    ∂E/∂z⁰ = -u,   ∂E/∂K = -u Aᵀ,   ∂E/∂Y = C v,   ∂E/∂c = -v·(p - y),   ∂E/∂ρ = -⟨v, A⟩

Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et al.,
2018), Theorem 3.2: the strongly convex inner problem whose solution T steps approach.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bilevel_models.heads.checks import (
    HeadDivergenceError,
    check_initial,
    check_sets,
    positive,
    precise,
    without_autocast,
)
from bilevel_models.heads.linear import Head, logits, zeros
from bilevel_models.heads.newton import Kernel, conjugate_gradients, curved, minimise
from bilevel_models.refusals import refuse_second_derivatives

__all__ = ["balance", "solve"]


@precise
def solve(
    support: Tensor, targets: Tensor, *, decay: Tensor | float, prior: Head | None = None
) -> Head:
    """Return W* = argmin L, the head of each episode, with the bias of the prior.

    c_i = 1 / (support images of the class of i): each class counts as one image, however many it
    has. An image whose target is all zeros is none, so that episodes of unequal sizes fill a batch.

    The result can be differentiated once in every tensor that is passed.

    Args:
        support: features h, (batch, n, dim).
        targets: y, (batch, n, way), of the features' dtype: classes (`one_hot`) or soft labels.
        decay: ρ > 0; the problem is strongly convex.
        prior: W⁰ and b, on the features as they are, such as `class_means`; zero if None.

    Raises:
        TypeError, ValueError: arguments whose dtype or shape do not fit, or ρ ≤ 0.
        HeadDivergenceError: the features are not finite.

    Cost: n² dim for the Gram matrix, n³ once, and of the order of fifty products of n² way an
    episode, and ten more for the gradient; with n > 2 dim, dim takes the place of one n in each.
    Float64 inside, to the precision of the features.
    """
    check_sets(support, targets)
    rho = positive(decay, "decay", support)
    start = (
        zeros(support, targets.shape[2])
        if prior is None
        else check_initial(prior, support, targets)
    )
    before = logits(start, support)
    a: Tensor = _Solved.apply(support, before, targets, balance(targets), rho)  # type: ignore[no-untyped-call]
    return {"weight": start["weight"] + support.mT @ a, "bias": start["bias"]}


def balance(targets: Tensor) -> Tensor:
    """Return c, (batch, n, 1): 1 / (images of an image's class), and 0 where there is no image."""
    counts = targets.sum(dim=1, keepdim=True)
    return (targets / torch.where(counts > 0, counts, 1)).sum(dim=-1, keepdim=True)


class _Solved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, support: Tensor, before: Tensor, targets: Tensor, weights: Tensor, rho: Tensor
    ) -> Tensor:
        h, z, y, c, r = (t.double() for t in (support, before, targets, weights, rho))
        tol = _tolerance(support)
        kernel = Kernel(h)
        found = minimise(kernel, z, y, c, r, tol)
        if not bool(found.decrement.amax() <= max(tol, 1e-3)):
            raise HeadDivergenceError(
                f"no optimum of the heads' inner problem was found for features {tuple(h.shape)} "
                f"with decay {float(r):.3g}: look for features that are not finite, or raise decay"
            )
        ctx.kernel, ctx.preconditioner, ctx.dtype = kernel, found.preconditioner, support.dtype
        ctx.save_for_backward(h, y, c, r, found.coefficients, found.probabilities)
        return found.coefficients.to(support.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivatives("a head of solve")
        h, y, c, rho, a, p = ctx.saved_tensors
        with without_autocast(grad):
            g = grad.double()
            _, ku = conjugate_gradients(
                ctx.kernel,
                ctx.preconditioner,
                p,
                c,
                rho,
                curved(p, c, g),
                tol=_tolerance(grad),
            )
            v = (g - ku) / rho
            u = curved(p, c, v)
            by_features = -(u @ (a.mT @ h) + a @ (u.mT @ h))
            by_weights = -(v * (p - y)).sum(dim=-1, keepdim=True)
            found = (by_features, -u, c * v, by_weights, -(v * a).sum())
        return tuple(each.to(ctx.dtype) for each in found)


def _tolerance(like: Tensor) -> float:
    """Return the longest last step, in logits: 1e-5 for single precision, 1e-11 for double."""
    return math.pow(torch.finfo(like.dtype).eps, 0.7)
