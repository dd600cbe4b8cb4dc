"""The inner objective about w_0, and what the engines for quadratic objectives refuse of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from bilevel_core.abstract import Backend
from bilevel_core.arrays import distance, entries, epsilon, from_entries, norm, zeros
from bilevel_core.flow import Flow, Instance, first_params
from bilevel_core.linear.dense import matrix_of
from bilevel_core.results import DivergenceError
from bilevel_core.tree import add, leaves, map_leaves, rebuild
from bilevel_core.types import Array, Tree

__all__ = ["Expansion", "expand", "pull_expansion", "refuse_batches", "refuse_other"]


@final
@dataclass(frozen=True, kw_only=True)
class Expansion:
    """∇L(w) = g_0 + A (w - w_0), which holds everywhere for a quadratic L.

    Attributes:
        engine: the name of the engine that asks, for its messages.
        start: w_0.
        slope: g_0, a tree like w_0, in the order of its leaves.
        hessian: A, (n, n), in the same order.
    """

    engine: str
    start: Tree
    slope: Tree
    hessian: Array


def refuse_batches(flow: Flow, engine: str) -> None:
    """Refuse an inner objective that is another one in each step."""
    if flow.problem.batches is not None:
        raise ValueError(
            f"{engine} takes one inner objective for all steps, but the problem has batches: give "
            "a problem without, or use Reverse"
        )


def expand(instance: Instance, engine: str) -> Expansion:
    """Return the expansion of L_λ about w_0.

    Raises:
        DivergenceError: the gradient or the Hessian is not finite.

    Cost: n Hessian-vector products for n parameters, and memory of n² numbers.
    """
    backend = instance.backend
    start = backend.detach(first_params(instance))
    slope, pull_back = backend.vjp(_slope(instance), start)
    slope = map_leaves(lambda _, leaf: leaf, start, backend.detach(slope))
    hessian = matrix_of(lambda v: backend.detach(pull_back(v)[0]), start, backend)
    if not math.isfinite(norm((slope, hessian), backend)):
        raise DivergenceError(
            "the inner objective's gradient or Hessian is not finite at w_0: look for a division "
            "by zero or a logarithm of zero in it"
        )
    return Expansion(engine=engine, start=start, slope=slope, hessian=hessian)


def _slope(instance: Instance) -> Callable[[Tree], Tree]:
    flow = instance.flow
    return flow.slope(instance.lam, flow.seen(1, instance.data))


def refuse_other(instance: Instance, about: Expansion, w: Tree, largest: float) -> None:
    """Refuse an L that is not quadratic, seen by its gradient at w.

    The gradient may be √ε (‖g_0‖ + ‖A‖ ‖w‖) away from that of the expansion, with ε the machine
    epsilon.

    Args:
        instance: the run.
        about: the expansion.
        w: where to look.
        largest: ‖A‖.
    """
    backend = instance.backend
    way = map_leaves(lambda a, b: a - b, w, about.start)
    change = about.hessian @ entries(way, about.start, backend)
    expected = add(about.slope, from_entries([change], about.start, backend))
    found = backend.detach(_slope(instance)(w))
    off = distance(expected, found, backend)
    allowed = math.sqrt(epsilon(w, backend)) * (
        norm(about.slope, backend) + largest * norm(w, backend)
    )
    # Written so that a NaN is refused.
    if not off <= allowed:
        raise ValueError(
            f"{about.engine} needs an inner objective that is quadratic in w, and the gradient of "
            f"this one is {off:.3g} away from that of its expansion about w_0, of norm "
            f"{norm(expected, backend):.3g}: use Implicit or Reverse"
        )


def pull_expansion(
    instance: Instance, start: Tree, by_slope: Array, by_hessian: Array, reach: float
) -> Tree:
    """Return ∂_λ (⟨σ, g_0⟩ + ⟨Γ, A⟩) at a fixed w_0, a tree like λ.

    With Γ + Γᵀ = 2 Σ_k θ_k u_k u_kᵀ, and since A u = ∇L(w_0 + u) - ∇L(w_0), only products with the
    derivative of ∇L in λ are needed: no third derivatives, and no more than the rank of Γ.

    Args:
        instance: the run.
        start: w_0.
        by_slope: σ, (n,).
        by_hessian: Γ, (n, n).
        reach: ρ > 0, how far from w_0 the points w_0 ± ρ u_k are.

    Cost: an eigendecomposition, n³, and one product for each θ_k above ε max|θ|, with ε the
    machine epsilon.
    """
    backend, lam, xp = instance.backend, instance.lam, instance.backend.namespace
    if not math.isfinite(norm(by_hessian, backend)):
        return map_leaves(lambda leaf: math.nan * leaf, lam)  # which has no eigenvectors
    theta, u = xp.linalg.eigh((by_hessian + by_hessian.T) / 2)
    order = xp.argsort(-abs(theta))
    theta, u = theta[order], u[:, order]
    kept = abs(theta) > epsilon(theta, backend) * abs(theta[0])
    parts = u.T * (theta * kept / reach)[:, None]
    offsets = xp.concatenate([0 * u[:1], reach * u.T])
    cotangents = xp.concatenate([(by_slope - parts.sum(0))[None], parts])
    rows = (_batch(rows, start, backend) for rows in (offsets, cotangents))
    fixed = (*instance.fixed, start, *rows)
    times = range(1 + int(kept.sum()))
    return backend.loop(_Mixed(instance.flow), zeros(lam, backend), fixed, times)[1]


@final
@dataclass(frozen=True)
class _Mixed:
    """The body of a loop over points, which adds ⟨cotangent, ∂_λ ∇L(w_0 + offset)⟩.

    Offsets and cotangents are batches of trees and not of entries: a framework that compiles the
    body may put the leaves of w_0 into another order.
    """

    flow: Flow

    def __call__(self, gathered: Tree, fixed: tuple[Any, ...], t: int) -> Tree:
        lam, data, start, offsets, cotangents = fixed
        flow, backend = self.flow, self.flow.backend
        w = map_leaves(lambda leaf, rows: leaf + rows[t], start, offsets)
        _, pull_back = backend.vjp(lambda x: flow.slope(x, flow.seen(1, data))(w), lam)
        (partial,) = pull_back(map_leaves(lambda rows: rows[t], cotangents))
        return backend.detach(add(gathered, partial))


def _batch(rows: Array, like: Tree, backend: Backend) -> Tree:
    """Return a tree whose leaves have a leading axis over rows of entries, (m, n)."""
    shaped, first = [], 0
    for leaf in leaves(like):
        size = math.prod(leaf.shape)
        part = rows[:, first : first + size].reshape(len(rows), *leaf.shape)
        shaped.append(backend.namespace.asarray(part, dtype=leaf.dtype))
        first += size
    return rebuild(like, shaped)
