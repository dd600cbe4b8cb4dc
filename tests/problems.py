"""Bilevel problems whose f_T is known in closed form, for tests of every engine.

`value(lam, eta, steps)` is f_T after gradient descent with step size η, computed by another route
than iteration (powers of a matrix, or algebra), and differentiable by ordinary autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_core import Problem


@dataclass(frozen=True, kw_only=True)
class Known:
    """A problem, a λ to start from, a safe step size, and the closed forms."""

    name: str
    problem: Problem
    lam: Tensor
    eta: float
    value: Callable[[Tensor, float, int], Tensor]
    limit: Callable[[Tensor], Tensor]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=_generator(seed))


def descended(hessian: Tensor, minimiser: Tensor, start: Tensor, eta: float, steps: int) -> Tensor:
    """Return w_T = w* + (I - ηH)^T (w_0 - w*) for a quadratic with Hessian H and minimiser w*."""
    contraction = torch.eye(len(hessian), dtype=hessian.dtype) - eta * hessian
    return minimiser + torch.linalg.matrix_power(contraction, steps) @ (start - minimiser)


def shift() -> Known:
    """L = ½(w - λ)², E = ½w², w_0 = 0: f_T = ½λ²(1 - (1-η)^T)², by hand."""
    return Known(
        name="shift",
        problem=Problem(
            inner=lambda w, lam: 0.5 * (w - lam) ** 2,
            outer=lambda w, lam: 0.5 * w**2,
            init=torch.zeros_like,
        ),
        lam=torch.tensor(1.7, dtype=torch.float64),
        eta=0.3,
        value=lambda lam, eta, steps: 0.5 * (lam * (1 - (1 - eta) ** steps)) ** 2,
        limit=lambda lam: 0.5 * lam**2,
    )


def ridge(n: int = 12, d: int = 5) -> Known:
    """Ridge regression with a penalty exp(λ_i) a feature; E also depends on λ directly.

    w_0 depends on λ too, so that all three terms of the hypergradient are at work.
    """
    x, y = _randn(n, d, seed=1), _randn(n, seed=2)
    x_val, y_val = _randn(n, d, seed=3), _randn(n, seed=4)

    def outer(w: Tensor, lam: Tensor) -> Tensor:
        return ((x_val @ w - y_val) ** 2).mean() + 0.01 * (lam**2).sum()

    def hessian(lam: Tensor) -> Tensor:
        return 2 * x.T @ x / n + 2 * torch.diag(lam.exp())

    def minimiser(lam: Tensor) -> Tensor:
        return torch.linalg.solve(hessian(lam), 2 * x.T @ y / n)

    return Known(
        name="ridge",
        problem=Problem(
            inner=lambda w, lam: ((x @ w - y) ** 2).mean() + (lam.exp() * w**2).sum(),
            outer=outer,
            init=lambda lam: 0.1 * lam,
        ),
        lam=_randn(d, seed=5) - 1.0,
        eta=0.1,
        value=lambda lam, eta, steps: outer(
            descended(hessian(lam), minimiser(lam), 0.1 * lam, eta, steps), lam
        ),
        limit=lambda lam: outer(minimiser(lam), lam),
    )


def linear_map(n: int = 9, d: int = 4, rho: float = 0.5) -> Known:
    """Example 3.4: L_H(w) = ‖y - XHw‖² + ρ‖w‖², λ = H a square matrix, E on held-out data."""
    x, y = _randn(n, d, seed=11), _randn(n, seed=12)
    x_val, y_val = _randn(n, d, seed=13), _randn(n, seed=14)

    def outer(w: Tensor, h: Tensor) -> Tensor:
        return ((y_val - x_val @ h @ w) ** 2).sum()

    def hessian(h: Tensor) -> Tensor:
        return 2 * (x @ h).T @ (x @ h) + 2 * rho * torch.eye(d, dtype=h.dtype)

    def minimiser(h: Tensor) -> Tensor:
        return torch.linalg.solve(hessian(h), 2 * (x @ h).T @ y)

    start = torch.zeros(d, dtype=torch.float64)
    return Known(
        name="linear-map",
        problem=Problem(
            inner=lambda w, h: ((y - x @ h @ w) ** 2).sum() + rho * (w**2).sum(),
            outer=outer,
            init=lambda h: torch.zeros(d, dtype=h.dtype),
        ),
        lam=0.5 * torch.eye(d, dtype=torch.float64) + 0.1 * _randn(d, d, seed=15),
        eta=0.02,
        value=lambda h, eta, steps: outer(
            descended(hessian(h), minimiser(h), start, eta, steps), h
        ),
        limit=lambda h: outer(minimiser(h), h),
    )


ALL = (shift(), ridge(), linear_map(), ridge(n=1, d=1))
