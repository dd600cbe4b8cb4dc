"""Reverse mode through one graph of the whole inner run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Array, Tree
from bilevel_core.flow import Flow, fold_ends
from bilevel_core.results import Hypergradient, diagnose
from bilevel_core.tree import map_leaves

__all__ = ["Unrolled"]


@final
@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """∇f_T by the framework's own reverse mode over all T steps.

    In PyTorch steps may draw at random (dropout): the one graph holds what was drawn, so f_T and
    ∇f_T are those of that run.

    Cost: time of T steps and their derivatives, no step run twice; memory of the whole graph,
    which grows with T times the size of a step's intermediate results.
    """

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇f_T(λ)."""
        backend = flow.backend
        (value, ends), pull_back = backend.vjp(_Run(flow, steps), lam)
        nothing = map_leaves(lambda leaf: 0 * backend.ones_like(leaf), ends)
        (grad,) = pull_back((backend.ones_like(value), nothing))
        head, tail = backend.detach(ends)
        return Hypergradient(
            value=backend.detach(value),
            grad=backend.detach(grad),
            state=tail[-1],
            result=diagnose(flow, lam, steps, head, tail),
        )


@final
@dataclass(frozen=True)
class _Run:
    """f_T(λ) and the states at either end, as one function."""

    flow: Flow
    steps: int

    def __call__(self, lam: Tree) -> tuple[Array, Tree]:
        start = self.flow.start(lam)
        head, tail = fold_ends(self.flow.backend, _Step(self.flow), start, lam, self.steps)
        return self.flow.objective(tail[-1], lam), (head, tail)


@final
@dataclass(frozen=True)
class _Step:
    """The body of the loop, which keeps the derivatives."""

    flow: Flow

    def __call__(self, state: Tree, lam: Tree, t: int) -> Tree:
        return self.flow.step(state, lam, t)
