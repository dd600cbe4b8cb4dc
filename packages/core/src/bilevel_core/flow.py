"""Problem, dynamics and backend joined into the three pure maps that an engine differentiates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Array, Backend, Dynamics, Tree
from bilevel_core.problem import Problem

__all__ = ["Flow", "trajectory"]


@final
@dataclass(frozen=True, kw_only=True)
class Flow:
    """s_0 = start(λ), s_t = step(s_{t-1}, λ, t), f_T(λ) = objective(s_T, λ)."""

    problem: Problem
    dynamics: Dynamics
    backend: Backend

    def start(self, lam: Tree) -> Tree:
        """Return s_0, the dynamics' state at w_0 = Φ_0(λ)."""
        return self.dynamics.init(self.problem.init(lam), lam)

    def step(self, state: Tree, lam: Tree, t: int) -> Tree:
        """Return s_t = Φ_t(s_{t-1}, λ)."""
        gradient = self.backend.gradient(lambda w: self.problem.inner(w, lam))
        return self.dynamics.step(gradient, state, lam, t)

    def objective(self, state: Tree, lam: Tree) -> Array:
        """Return E(w, λ) at the parameters of a state."""
        return self.problem.outer(self.dynamics.params(state), lam)


def trajectory(flow: Flow, lam: Tree, steps: int) -> list[Tree]:
    """Return [s_0, …, s_T] with no derivatives attached; memory: T + 1 states."""
    states = [flow.backend.detach(flow.start(lam))]
    for t in range(1, steps + 1):
        states.append(flow.backend.detach(flow.step(states[-1], lam, t)))
    return states
