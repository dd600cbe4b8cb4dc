"""Problem, dynamics and backend, joined into the three pure maps that make f_T."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Array, Backend, Dynamics, Tree
from bilevel_core.problem import Problem

__all__ = ["Flow", "advance", "run_ends", "trajectory"]


@final
@dataclass(frozen=True, kw_only=True)
class Flow:
    """s_0 = start(λ), s_t = step(s_{t-1}, λ, t), f_T(λ) = objective(s_T, λ).

    Engines of f_T differentiate these maps; `Implicit` differentiates `problem.inner` itself.
    """

    problem: Problem
    dynamics: Dynamics
    backend: Backend

    def start(self, lam: Tree) -> Tree:
        """Return s_0, the dynamics' state at w_0 = Φ_0(λ)."""
        return self.dynamics.init(self.problem.init(lam), lam)

    def step(self, state: Tree, lam: Tree, t: int) -> Tree:
        """Return s_t = Φ_t(s_{t-1}, λ)."""
        inner = self.problem.inner_at(t)
        gradient = self.backend.gradient(lambda w: inner(w, lam))
        return self.dynamics.step(gradient, state, lam, t)

    def objective(self, state: Tree, lam: Tree) -> Array:
        """Return E(w, λ) at the parameters of a state."""
        return self.problem.outer(self.dynamics.params(state), lam)


def trajectory(flow: Flow, lam: Tree, state: Tree, position: int, end: int) -> list[Tree]:
    """Return [s_position, …, s_end] with no derivatives attached, from s_position."""
    states = [state]
    for t in range(position + 1, end + 1):
        states.append(flow.backend.detach(flow.step(states[-1], lam, t)))
    return states


def advance(flow: Flow, lam: Tree, state: Tree, position: int, end: int) -> Tree:
    """Return s_end from s_position, with no derivatives attached; memory: one state."""
    for t in range(position + 1, end + 1):
        state = flow.backend.detach(flow.step(state, lam, t))
    return state


def run_ends(flow: Flow, lam: Tree, steps: int) -> tuple[list[Tree], list[Tree]]:
    """Run all T steps and return [s_0, s_1] and [s_{T-1}, s_T] (one state where T = 0)."""
    head = trajectory(flow, lam, flow.backend.detach(flow.start(lam)), 0, min(1, steps))
    if steps < 2:
        return head, head
    before = advance(flow, lam, head[1], 1, steps - 1)
    return head, trajectory(flow, lam, before, steps - 1, steps)
