"""Outer objectives that look at all of the inner run, and not at its end alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

from bilevel_core.abstract import Dynamics, Gradient
from bilevel_core.problem import Problem
from bilevel_core.tree import leaves
from bilevel_core.types import Array, Tree

__all__ = ["along_trajectory"]


def along_trajectory(
    problem: Problem, dynamics: Dynamics, weight: Callable[[Tree, int], Any]
) -> tuple[Problem, Dynamics]:
    """Return a problem and dynamics with f_T(λ) = Σ_{t=1…T} v_t E(w_t, λ).

    The sum is a part of the state, so every engine of f_T differentiates it; `Implicit`, `Exact`
    and `Spectral` have no such state. `solve_inner` then returns {"w": w_T, "sum": f_T}.

    Args:
        problem: with the E of a single w.
        dynamics: the steps.
        weight: v, a function `(lam, t)` of λ and the step t = 1 … T.

    Cost: E once in every step.

    Source: How to train your MAML (Antoniou, Edwards, Storkey, 2019), section 4, "multi-step loss
    optimization".
    """
    return replace(problem, outer=_sum), _Along(dynamics, problem.outer, weight)


def _sum(params: Tree, lam: Tree, data: Any = None) -> Array:
    del lam, data
    return params["sum"]


@final
@dataclass(frozen=True)
class _Along:
    """Dynamics that add up what the outer objective says of each step."""

    dynamics: Dynamics
    objective: Callable[..., Array]
    weight: Callable[[Tree, int], Any]

    def init(self, w: Tree, lam: Tree) -> Tree:
        state = self.dynamics.init(w, lam)
        return {"state": state, "sum": _zero(self.dynamics.params(state))}

    def step(self, gradient: Gradient, state: Tree, lam: Tree, t: int) -> Tree:
        moved = self.dynamics.step(gradient, state["state"], lam, t)
        given = () if gradient.data is None else (gradient.data,)
        value = self.objective(self.dynamics.params(moved), lam, *given)
        return {"state": moved, "sum": state["sum"] + self.weight(lam, t) * value}

    def params(self, state: Tree) -> Tree:
        return {"w": self.dynamics.params(state["state"]), "sum": state["sum"]}


def _zero(w: Tree) -> Array:
    return 0 * leaves(w)[0].reshape(-1)[:1].sum()
