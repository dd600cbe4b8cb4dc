"""Forward-mode hypergradient: tangents carried along with the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Array, Tree
from bilevel_core.flow import Flow, fold_ends
from bilevel_core.results import Hypergradient, diagnose

__all__ = ["Carry", "Forward"]


@final
@dataclass(frozen=True, kw_only=True)
class Forward:
    """Z_t = A_t Z_{t-1} + B_t,  ∇f_T = ∇_λ E + ∇_s E Z_T, where Z_t is the derivative of s_t in λ.

    Attributes:
        chunk: hyperparameters whose tangents are carried at once, at least 1; None takes all.

    Cost: memory of `chunk` tangents of the state, whatever T is; time of T steps, each with `chunk`
    products, once for every chunk. It suits few hyperparameters and long runs.

    Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
    Frasconi, Pontil, 2017), Algorithm 2.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 hyperparameter, found {self.chunk}")

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇f_T(λ)."""
        size = flow.backend.size(lam)
        chunk = max(1, min(self.chunk or size, size))
        parts = []
        for first in range(0, max(1, size), chunk):
            # One row at least, also where λ has no entry: then it is a tangent of nothing.
            units = flow.backend.unit_tangents(lam, first, max(1, min(chunk, size - first)))
            value, part, head, tail = _carry(flow, lam, units, steps)
            parts.append(part[: size - first])
        return Hypergradient(
            value=value,
            grad=flow.backend.from_entries(parts, lam),
            state=tail[-1],
            result=diagnose(flow, lam, steps, head, tail),
        )


def _carry(
    flow: Flow, lam: Tree, units: Tree, steps: int
) -> tuple[Array, Array, list[Tree], list[Tree]]:
    """Run T steps with their derivatives along `units`; returns f_T, ∇f_T·units and the ends."""
    backend, fixed = flow.backend, (lam, units)
    carry = backend.detach(backend.jvps(flow.start, (lam,), (units,)))
    head, tail = fold_ends(backend, Carry(flow), carry, fixed, steps)
    state, tangents = tail[-1]
    value, derivatives = backend.detach(
        backend.jvps(flow.objective, (state, lam), (tangents, units))
    )
    return value, derivatives, [s for s, _ in head], [s for s, _ in tail]


@final
@dataclass(frozen=True)
class Carry:
    """The body of the loop: s_t and its derivatives from s_{t-1} and those."""

    flow: Flow

    def __call__(self, carry: tuple[Tree, Tree], fixed: tuple[Tree, Tree], t: int) -> Tree:
        """Return (s_t, Z_t along the tangents); `fixed` is (λ, the tangents of λ)."""
        (state, tangents), (lam, units) = carry, fixed
        backend = self.flow.backend
        carried = backend.jvps(
            lambda s, x: self.flow.step(s, x, t), (state, lam), (tangents, units)
        )
        return backend.detach(carried)
