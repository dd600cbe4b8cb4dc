"""Reverse mode through one graph of the whole inner run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Array, Tree
from bilevel_core.flow import Flow
from bilevel_core.results import Hypergradient, diagnose
from bilevel_core.tree import map_leaves

__all__ = ["Unrolled"]


@final
@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """∇f_T by the framework's own reverse mode over all T steps.

    Cost: time of T steps and their derivatives, no step run twice; memory of the whole graph,
    which grows with T times the size of a step's intermediate results.
    """

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇f_T(λ)."""

        def run(lam: Tree) -> tuple[Array, list[Tree]]:
            state = flow.start(lam)
            ends = [state]
            for t in range(1, steps + 1):
                state = flow.step(state, lam, t)
                ends = [*ends, state] if t <= 2 else [*ends[:2], ends[-1], state]
            return flow.objective(state, lam), ends

        backend = flow.backend
        (value, ends), pull_back = backend.vjp(run, lam)
        nothing = map_leaves(lambda leaf: 0 * backend.ones_like(leaf), ends)
        (grad,) = pull_back((backend.ones_like(value), nothing))
        ends = backend.detach(ends)
        return Hypergradient(
            value=backend.detach(value),
            grad=backend.detach(grad),
            state=ends[-1],
            result=diagnose(flow, lam, steps, ends[:2], ends[-2:]),
        )
