"""Heads at the optimum of their inner problem, and their hypergradient by the implicit function.

    L(W) = Σ_i c_i ℓ(h_i W + b, y_i) + (ρ/2) ‖W - W⁰‖²

At the optimum W = W⁰ + hᵀ A. The unknown is A, (batch, n, way): the logits of the support images
are z = z⁰ + K A, and what is sought is the zero of

    F(A) = ρ A + C (softmax(z) - Y)        C: the diagonal of the images' weights c

Its Jacobian, J = ρ I + H K with H = C (diag(p) - p pᵀ) an image, is symmetric and positive in the
inner product ⟨a, b⟩ = aᵀ K b. So conjugate gradients in that product solve for a Newton step, and
they are those that would solve for it in the weights. They see nothing of K but products.

A cotangent ā of A gives, with J u = H ā solved as a Newton step is, and v = (ā - K u) / ρ, so that
u = H v,

    ∂E/∂z⁰ = -u,   ∂E/∂K = -u Aᵀ,   ∂E/∂Y = C v,   ∂E/∂c = -v·(p - y),   ∂E/∂ρ = -⟨v, A⟩

Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et al.,
2018), Theorem 3.2: the strongly convex inner problem whose solution T steps approach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_models.heads.checks import (
    HeadDivergenceError,
    check_initial,
    check_sets,
    positive,
    precise,
    without_autocast,
)
from bilevel_models.heads.linear import Head, logits, zeros
from bilevel_models.refusals import refuse_second_derivatives

__all__ = ["balance", "solve"]

NEWTON_STEPS, CG_STEPS, HALVINGS = 60, 400, 30


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


@final
class Kernel:
    """K = X Xᵀ of features X, (batch, n, dim), in the cheaper of its two forms.

    Cost: of a product with (batch, n, way), n² · way, or 2 n · dim · way where n > 2 dim.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        n, dim = features.shape[1:]
        self.matrix = features @ features.mT if n <= 2 * dim else None

    def __matmul__(self, a: Tensor) -> Tensor:
        if self.matrix is not None:
            return self.matrix @ a
        return self.features @ (self.features.mT @ a)

    def inverse(self, rho: Tensor, weights: Tensor) -> _Inverse:
        """Return (ρ I + diag(weights) K)⁻¹ of weights (batch, n, 1), by Woodbury if n > 2 dim."""
        if self.matrix is not None:
            identity = torch.eye(self.matrix.shape[-1]).to(self.matrix)
            return _Inverse(torch.linalg.inv(rho * identity + weights * self.matrix), None, rho)
        x = self.features
        identity = torch.eye(x.shape[-1]).to(x)
        right = torch.linalg.solve(rho * identity + x.mT @ (weights * x), x.mT)
        return _Inverse(weights * x, right, rho)


@final
@dataclass(frozen=True)
class _Inverse:
    """M⁻¹, or (I - left right) / ρ."""

    left: Tensor
    right: Tensor | None
    rho: Tensor

    def __matmul__(self, a: Tensor) -> Tensor:
        if self.right is None:
            return self.left @ a
        return (a - self.left @ (self.right @ a)) / self.rho


@final
@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Where the heads of a meta-batch are trained.

    Attributes:
        coefficients: A, (batch, n, way).
        probabilities: softmax(z) there.
        preconditioner: an approximate J⁻¹.
        decrement: the length of the last Newton step, in the norm of J, each episode.
    """

    coefficients: Tensor
    probabilities: Tensor
    preconditioner: _Inverse
    decrement: Tensor


def curved(p: Tensor, weights: Tensor, a: Tensor) -> Tensor:
    """Return H a = C (diag(p) - p pᵀ) a, image by image."""
    scaled = p * a
    return weights * (scaled - p * scaled.sum(dim=-1, keepdim=True))


def minimise(
    kernel: Kernel, prior: Tensor, targets: Tensor, weights: Tensor, rho: Tensor, tol: float
) -> Optimum:
    """Return the zero of F, to a Newton step shorter than `tol`.

    Args:
        kernel: K.
        prior: z⁰, (batch, n, way).
        targets: Y, rows that sum to one; those of weight 0 do not matter.
        weights: c, (batch, n, 1).
        rho: ρ, a scalar.
        tol: of the step, which is measured in logits.

    Steps are halved until the loss falls as it should (Armijo). The episodes of a batch take the
    same number of steps; those that are done stay where they are.

    Cost: some five steps, each of some ten products with K, and one inverse of an n x n matrix.
    """
    a, u = torch.zeros_like(prior), torch.zeros_like(prior)
    p = prior.softmax(dim=-1)
    preconditioner = kernel.inverse(rho, _mean_curvature(p, weights))
    loss = _loss(a, u, prior, targets, weights, rho)
    for _ in range(NEWTON_STEPS):
        residual = rho * a + weights * (p - targets)
        step, moved = conjugate_gradients(
            kernel, preconditioner, p, weights, rho, -residual, tol=_forcing(residual)
        )
        slope = (residual * moved).sum(dim=(1, 2), keepdim=True)
        size, loss = _armijo(a, u, step, moved, slope, loss, prior, targets, weights, rho)
        a, u = a + size * step, u + size * moved
        p = (prior + u).softmax(dim=-1)
        decrement = (-slope).clamp(min=0).sqrt()
        # Written so that what is no number ends it.
        if not bool((decrement > tol).any()):
            break
    # What the products with K did not see of A, where K is singular, is in F itself.
    return Optimum(
        coefficients=weights * (targets - p) / rho,
        probabilities=p,
        preconditioner=preconditioner,
        decrement=decrement,
    )


def conjugate_gradients(
    kernel: Kernel,
    preconditioner: _Inverse,
    p: Tensor,
    weights: Tensor,
    rho: Tensor,
    right: Tensor,
    *,
    tol: float,
) -> tuple[Tensor, Tensor]:
    """Return x with J x = right, and K x, to a residual that is `tol` times as long.

    Lengths are those of K: where it is singular, K x is exact and x need not be.

    Source: Methods of Conjugate Gradients for Solving Linear Systems (Hestenes, Stiefel, 1952), in
    the inner product of K.
    """
    x, seen, r = torch.zeros_like(right), torch.zeros_like(right), right
    y = preconditioner @ r
    ky = kernel @ y
    d, kd = y, ky
    rho_r = (r * ky).sum(dim=(1, 2), keepdim=True)
    goal = rho_r * tol**2
    for _ in range(CG_STEPS):
        product = rho * d + curved(p, weights, kd)
        size = _ratio(rho_r, (product * kd).sum(dim=(1, 2), keepdim=True))
        x, seen, r = x + size * d, seen + size * kd, r - size * product
        y = preconditioner @ r
        ky = kernel @ y
        new = (r * ky).sum(dim=(1, 2), keepdim=True)
        if not bool((new > goal).any()):
            break
        ahead = _ratio(new, rho_r)
        d, kd, rho_r = y + ahead * d, ky + ahead * kd, new
    return x, seen


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """Return over / under, and 0 where an episode is solved and both are, but for rounding."""
    return torch.where(under > 0, over / under, 0)


def _forcing(residual: Tensor) -> float:
    """Return how exactly a step is solved for: the closer to the optimum, the more exactly.

    Source: Choosing the Forcing Terms in an Inexact Newton Method (Eisenstat, Walker, 1996).
    """
    return min(0.1, float(residual.abs().amax()))


def _mean_curvature(p: Tensor, weights: Tensor) -> Tensor:
    """Return c times the mean of p (1 - p) that makes the trace of H right, (batch, n, 1)."""
    way = p.shape[-1]
    shares = (weights * p * (1 - p)).sum(dim=(1, 2), keepdim=True)
    mean = shares / (weights.sum(dim=(1, 2), keepdim=True) * max(way - 1, 1))
    return weights * mean


def _loss(
    a: Tensor, u: Tensor, prior: Tensor, targets: Tensor, weights: Tensor, rho: Tensor
) -> Tensor:
    """Return Σ_i c_i ℓ(z_i, y_i) + (ρ/2) aᵀ K a of each episode, (batch, 1, 1)."""
    each = functional.log_softmax(prior + u, dim=-1) * targets
    return (0.5 * rho * a * u - weights * each).sum(dim=(1, 2), keepdim=True)


def _armijo(
    a: Tensor,
    u: Tensor,
    step: Tensor,
    moved: Tensor,
    slope: Tensor,
    before: Tensor,
    prior: Tensor,
    targets: Tensor,
    weights: Tensor,
    rho: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the step size of each episode, 1 or a half of it as often as needed, and the loss."""
    size = torch.ones_like(slope)
    rounding = 64 * torch.finfo(before.dtype).eps * (1 + before.abs())
    for _ in range(HALVINGS):
        loss = _loss(a + size * step, u + size * moved, prior, targets, weights, rho)
        short = loss > before + 1e-4 * size * slope + rounding
        if not bool(short.any()):
            break
        size = torch.where(short, size / 2, size)
    return size, loss
