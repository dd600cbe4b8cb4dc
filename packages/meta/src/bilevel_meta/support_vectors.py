"""The dual of the multi-class support vector machine, solved by an interior point method.

    minimise over α:  ½ Σ_c α_cᵀ (K + I) α_c - Σ_i α_{i,y_i}
    with              α_ij ≤ C [j = y_i],   Σ_j α_ij = 0

α is (n, way) and is kept as one vector z. The conditions at the solution, with slack s = h - z and
multipliers u of the bounds and ν of the sums:

    G z - y + u + Aᵀ ν = 0,   A z = 0,   z + s = h,   s ∘ u = 0,   s, u ≥ 0
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["crammer_singer"]


class _Point(NamedTuple):
    z: Tensor
    nu: Tensor
    u: Tensor
    s: Tensor


def crammer_singer(kernel: Tensor, targets: Tensor, *, bound: float, steps: int = 20) -> Tensor:
    """Return α of each episode, (episodes, n, way).

    It can be differentiated once in `kernel`: the derivative is that of the conditions above at the
    solution, one more system with the last step's matrix.

    Args:
        kernel: K, positive semidefinite (episodes, n, n).
        targets: one-hot labels, (episodes, n, way).
        bound: C > 0.
        steps: of the interior point method.

    Raises:
        ValueError: C is not positive.

    Cost: a step, (n way)³ / 3 an episode, in float64.

    Source: On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines (Crammer,
    Singer, 2001); Meta-Learning with Differentiable Convex Optimization (Lee et al., 2019), Eq. 11
    and its code, whose I is added; OptNet (Amos, Kolter, 2017), Eq. 6, the derivative.
    """
    if not bound > 0:
        raise ValueError(f"bound={bound}: C must be positive: without it every α is zero")
    n, way = targets.shape[1:]
    y = targets.double().flatten(1)
    hessian = _expanded(kernel.double(), way)
    sums = torch.eye(n, dtype=y.dtype, device=y.device).repeat_interleave(way, dim=1)
    with torch.no_grad():
        at = _solve(hessian, y, sums, bound * y, steps)
        system = _System(hessian, sums, at)
    # One Newton step from the solution: zero in value, the implicit derivative in the graph.
    residual = (hessian @ at.z.unsqueeze(-1)).squeeze(-1) - y + at.u + at.nu @ sums
    z = at.z + system.solve(-residual, torch.zeros_like(at.nu))[0]
    if z.requires_grad:
        z.register_hook(_once)  # type: ignore[no-untyped-call]
    return z.view_as(targets).to(kernel)


def _expanded(kernel: Tensor, way: int) -> Tensor:
    """Return (K + I) ⊗ I as the matrix G of z, whose entry (i, j) is at i way + j."""
    n = kernel.shape[-1]
    eye = torch.eye(way, dtype=kernel.dtype, device=kernel.device)
    blocks = torch.einsum("bik,jl->bijkl", kernel, eye).reshape(-1, n * way, n * way)
    return blocks + torch.eye(n * way, dtype=kernel.dtype, device=kernel.device)


class _System:
    """[M Aᵀ; A 0] with M = G + diag(u / s), factored."""

    def __init__(self, hessian: Tensor, sums: Tensor, at: _Point) -> None:
        self.sums = sums
        self.factor = torch.linalg.cholesky(hessian + torch.diag_embed(at.u / at.s))
        self.across = torch.cholesky_solve(sums.mT.expand(len(hessian), -1, -1), self.factor)
        self.small = torch.linalg.cholesky(sums @ self.across)

    def solve(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return (dz, dν) with M dz + Aᵀ dν = first and A dz = second."""
        alone = torch.cholesky_solve(first.unsqueeze(-1), self.factor)
        nu = torch.cholesky_solve(self.sums @ alone - second.unsqueeze(-1), self.small)
        return (alone - self.across @ nu).squeeze(-1), nu.squeeze(-1)


def _solve(hessian: Tensor, y: Tensor, sums: Tensor, h: Tensor, steps: int) -> _Point:
    """Return the point after some predictor-corrector steps (Mehrotra)."""
    zero, one = torch.zeros_like(y), torch.ones_like(y)
    at = _Point(zero, y.new_zeros(len(y), sums.shape[0]), one, one)
    for _ in range(steps):
        system = _System(hessian, sums, at)
        dual = -((hessian @ at.z.unsqueeze(-1)).squeeze(-1) - y + at.u + at.nu @ sums)
        rows, primal = -(at.z @ sums.mT), h - at.z - at.s
        gap = (at.u * at.s).mean(dim=1, keepdim=True)
        step = _newton(system, at, dual, rows, primal, -at.u * at.s)
        length = _length(at, step)
        reached = ((at.u + length * step.u) * (at.s + length * step.s)).mean(dim=1, keepdim=True)
        # Written so that a gap that is closed already stays so.
        centre = gap * (reached / gap.clamp(min=1e-300)).pow(3)
        corrected = centre - at.u * at.s - step.u * step.s
        step = _newton(system, at, dual, rows, primal, corrected)
        length = 0.99 * _length(at, step)
        moved = _Point(*(a + length * b for a, b in zip(at, step, strict=True)))
        floor = 1e-15  # keeps u / s finite
        at = moved._replace(u=moved.u.clamp(min=floor), s=moved.s.clamp(min=floor))
    return at


def _newton(
    system: _System, at: _Point, dual: Tensor, rows: Tensor, primal: Tensor, product: Tensor
) -> _Point:
    """Return the step with s du + u ds = product, dz + ds = primal and the two other residuals."""
    dz, nu = system.solve(dual - (product - at.u * primal) / at.s, rows)
    ds = primal - dz
    return _Point(dz, nu, (product - at.u * ds) / at.s, ds)


def _length(at: _Point, step: _Point) -> Tensor:
    """Return the longest step, at most 1, that keeps u and s positive, (episodes, 1)."""
    ratios = [
        torch.where(d < 0, -x / d, torch.inf).amin(dim=1, keepdim=True)
        for x, d in ((at.u, step.u), (at.s, step.s))
    ]
    return torch.minimum(*ratios).clamp(max=1.0)


def _once(grad: Tensor) -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "a gradient was asked for with create_graph=True, but a support vector head can be "
            "differentiated only once: leave create_graph out, or use a ridge head"
        )
    del grad
