"""Bilevel problems whose f_T is known in closed form, for tests of every engine.

`value(lam, eta, steps)` is f_T after gradient descent with step size η, computed by another route
than iteration (powers of a matrix, or algebra), and differentiable by ordinary autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from bilevel_core import Problem
from frameworks import TORCH, Framework


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """A problem, a λ to start from, a safe step size, and the closed forms."""

    name: str
    build: Callable[[Framework], Problem]
    lam: Tensor
    eta: float
    value: Callable[[Tensor, float, int], Tensor]
    limit: Callable[[Tensor], Tensor]

    def __str__(self) -> str:
        return f"{self.name}-{self.lam.numel()}"

    @cached_property
    def problem(self) -> Problem:
        """The problem on tensors."""
        return self.on(TORCH)

    @cache  # noqa: B019  (a handful of problems, which live as long as the tests do)
    def on(self, framework: Framework) -> Problem:
        """The problem on a framework's arrays, always the same one, so that it compiles once."""
        return self.build(framework)


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
        build=lambda framework: Problem(
            inner=lambda w, lam: 0.5 * (w - lam) ** 2,
            outer=lambda w, lam: 0.5 * w**2,
            init=framework.xp.zeros_like,
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

    def build(framework: Framework) -> Problem:
        a, b, a_val, b_val = framework.arrays((x, y, x_val, y_val))
        exp = framework.xp.exp
        return Problem(
            inner=lambda w, lam: ((a @ w - b) ** 2).mean() + (exp(lam) * w**2).sum(),
            outer=lambda w, lam: ((a_val @ w - b_val) ** 2).mean() + 0.01 * (lam**2).sum(),
            init=lambda lam: 0.1 * lam,
        )

    outer = build(TORCH).outer

    def hessian(lam: Tensor) -> Tensor:
        return 2 * x.T @ x / n + 2 * torch.diag(lam.exp())

    def minimiser(lam: Tensor) -> Tensor:
        return torch.linalg.solve(hessian(lam), 2 * x.T @ y / n)

    return Known(
        name="ridge",
        build=build,
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

    def build(framework: Framework) -> Problem:
        a, b, a_val, b_val = framework.arrays((x, y, x_val, y_val))
        return Problem(
            inner=lambda w, h: ((b - a @ h @ w) ** 2).sum() + rho * (w**2).sum(),
            outer=lambda w, h: ((b_val - a_val @ h @ w) ** 2).sum(),
            init=lambda h: framework.xp.zeros(d, dtype=h.dtype),
        )

    outer = build(TORCH).outer

    def hessian(h: Tensor) -> Tensor:
        return 2 * (x @ h).T @ (x @ h) + 2 * rho * torch.eye(d, dtype=h.dtype)

    def minimiser(h: Tensor) -> Tensor:
        return torch.linalg.solve(hessian(h), 2 * (x @ h).T @ y)

    start = torch.zeros(d, dtype=torch.float64)
    return Known(
        name="linear-map",
        build=build,
        lam=0.5 * torch.eye(d, dtype=torch.float64) + 0.1 * _randn(d, d, seed=15),
        eta=0.02,
        value=lambda h, eta, steps: outer(
            descended(hessian(h), minimiser(h), start, eta, steps), h
        ),
        limit=lambda h: outer(minimiser(h), h),
    )


ALL = (shift(), ridge(), linear_map(), ridge(n=1, d=1))
