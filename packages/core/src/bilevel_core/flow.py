"""Problem, dynamics and backend, joined into the three pure maps that make f_T."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from bilevel_core.abstract import Array, Backend, Dynamics, Tree
from bilevel_core.problem import Problem
from bilevel_core.tree import plain

__all__ = ["Advance", "Flow", "Trajectory", "advance", "fold_ends", "run_ends", "trajectory"]


@final
@dataclass(frozen=True, kw_only=True)
class Flow:
    """s_0 = start(λ), s_t = step(s_{t-1}, λ, t), f_T(λ) = objective(s_T, λ).

    Engines of f_T differentiate these maps; `Implicit`, `Exact` and `Spectral` differentiate
    `problem.inner` itself.
    """

    problem: Problem
    dynamics: Dynamics
    backend: Backend

    def initial(self, lam: Tree) -> Tree:
        """Return w_0 = Φ_0(λ)."""
        return plain(self.problem.init(lam))

    def start(self, lam: Tree) -> Tree:
        """Return s_0, the dynamics' state at w_0."""
        return plain(self.dynamics.init(self.initial(lam), lam))

    def step(self, state: Tree, lam: Tree, t: int) -> Tree:
        """Return s_t = Φ_t(s_{t-1}, λ)."""
        inner = self.problem.inner_at(t)
        gradient = self.backend.gradient(lambda w: inner(w, lam))
        return plain(self.dynamics.step(gradient, state, lam, t))

    def objective(self, state: Tree, lam: Tree) -> Array:
        """Return E(w, λ) at the parameters of a state."""
        return self.problem.outer(self.dynamics.params(state), lam)


@final
@dataclass(frozen=True)
class Advance:
    """The body of a loop over steps: s_t from s_{t-1}, with no derivatives attached."""

    flow: Flow

    def __call__(self, state: Tree, lam: Tree, t: int) -> Tree:
        """Return s_t."""
        return self.flow.backend.detach(self.flow.step(state, lam, t))


@final
@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The states from s_position to s_end.

    Attributes:
        flow: the maps.
        position: where it begins.
        end: where it ends.
        history: the states s_position … s_{end-1}, as the backend keeps them.
        last: s_end.
    """

    flow: Flow
    position: int
    end: int
    history: Any
    last: Tree

    def state(self, t: int) -> Tree:
        """Return s_t."""
        if t == self.end:
            return self.last
        return self.flow.backend.recall(self.history, t - self.position)

    def head(self) -> list[Tree]:
        """Return the first two states, or one where there is one."""
        return [self.state(t) for t in range(self.position, min(self.position + 2, self.end + 1))]

    def tail(self) -> list[Tree]:
        """Return the last two states, or one where there is one."""
        return [self.state(t) for t in range(max(self.position, self.end - 1), self.end + 1)]


def trajectory(flow: Flow, lam: Tree, state: Tree, position: int, end: int) -> Trajectory:
    """Return all states from s_position = `state` to s_end, with no derivatives attached."""
    times = range(position + 1, end + 1)
    history, last = flow.backend.record(Advance(flow), state, lam, times)
    return Trajectory(flow=flow, position=position, end=end, history=history, last=last)


def advance(flow: Flow, lam: Tree, state: Tree, position: int, end: int) -> Tree:
    """Return s_end from s_position, with no derivatives attached; memory: one state."""
    return flow.backend.fold(Advance(flow), state, lam, range(position + 1, end + 1))


def run_ends(flow: Flow, lam: Tree, steps: int) -> tuple[list[Tree], list[Tree]]:
    """Run all T steps and return [s_0, s_1] and [s_{T-1}, s_T] (one state where T = 0)."""
    state = flow.backend.detach(flow.start(lam))
    return fold_ends(flow.backend, Advance(flow), state, lam, steps)


def fold_ends(
    backend: Backend, body: Callable[[Tree, Tree, int], Tree], carry: Tree, fixed: Tree, steps: int
) -> tuple[list[Tree], list[Tree]]:
    """Fold over t = 1 … T; returns the carries at t = 0, 1 and at t = T-1, T (one where T = 0)."""
    if steps == 0:
        return [carry], [carry]
    head = [carry, backend.fold(body, carry, fixed, range(1, 2))]
    if steps == 1:
        return head, head
    before = backend.fold(body, head[1], fixed, range(2, steps))
    return head, [before, backend.fold(body, before, fixed, range(steps, steps + 1))]
