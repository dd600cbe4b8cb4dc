"""The backward sweep of reverse mode, which its engines share; they differ in what they store.

    α_T = ∇_s E,  α_{t-1} = α_t A_t,  ∇f_T = ∇_λ E + Σ_t α_t B_t + α_0 ∂Φ_0/∂λ

A_t and B_t are the derivatives of Φ_t in the state and in λ; only their products with α are formed.
A sweep on its way back is the pair (α, the part of ∇f_T gathered so far).

Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
Frasconi, Pontil, 2017), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from bilevel_core.abstract import Array, Tree
from bilevel_core.flow import Flow, Trajectory
from bilevel_core.tree import add

__all__ = [
    "PullBack",
    "Sweep",
    "pulled",
    "start_sweep",
    "step_vjp",
    "sweep_step",
    "sweep_through",
    "through_start",
]

Sweep: TypeAlias = tuple[Tree, Tree]
"""(α, gathered)."""

PullBack: TypeAlias = Callable[[Tree], tuple[Tree, ...]]
"""The products of a cotangent with the derivatives in each argument."""


def start_sweep(flow: Flow, lam: Tree, last: Tree) -> tuple[Array, Sweep]:
    """Begin at s_T: f_T, and the sweep with α_T = ∇_s E and the direct part ∇_λ E."""
    value, pull_back = flow.backend.vjp(flow.objective, last, lam)
    alpha, grad = flow.backend.detach(pull_back(flow.backend.ones_like(value)))
    return flow.backend.detach(value), (alpha, grad)


def sweep_step(flow: Flow, lam: Tree, sweep: Sweep, before: Tree, t: int) -> Sweep:
    """Pull α back through step t, which is run again from the state before it."""
    # A loop of one step, whose body a backend compiles once for all of them.
    behind: Sweep = flow.backend.fold(_Back(flow), sweep, (lam, before), range(t, t + 1))
    return behind


def step_vjp(flow: Flow, lam: Tree, before: Tree, t: int) -> tuple[Tree, PullBack]:
    """Return s_t with its graph, and the way back through step t to (s_{t-1}, λ)."""
    return flow.backend.vjp(lambda s, x: flow.step(s, x, t), before, lam)


def pulled(flow: Flow, sweep: Sweep, pull_back: PullBack) -> Sweep:
    """Pull α back through a step by its products with the derivatives in (state, λ)."""
    alpha, gathered = sweep
    alpha, partial = pull_back(alpha)
    behind: Sweep = flow.backend.detach((alpha, add(gathered, partial)))
    return behind


def sweep_through(lam: Tree, sweep: Sweep, way: Trajectory) -> Sweep:
    """Pull α back through all steps of a trajectory, the last one first."""
    times = range(way.end, way.position, -1)
    body = _Back(way.flow, way.position)
    swept: Sweep = way.flow.backend.fold(body, sweep, (lam, way.history), times)
    return swept


def through_start(flow: Flow, lam: Tree, sweep: Sweep) -> Tree:
    """Pull α_0 back through Φ_0; returns ∇f_T."""
    alpha, gathered = sweep
    _, pull_back = flow.backend.vjp(flow.start, lam)
    (partial,) = pull_back(alpha)
    return flow.backend.detach(add(gathered, partial))


@final
@dataclass(frozen=True)
class _Back:
    """The body of a loop over steps, the last one first; `fixed` is (λ, the states before them).

    Attributes:
        flow: the maps.
        position: the step at which a history of states begins; None for a single state.
    """

    flow: Flow
    position: int | None = None

    def __call__(self, sweep: Sweep, fixed: tuple[Tree, Any], t: int) -> Sweep:
        lam, before = fixed
        if self.position is not None:
            before = self.flow.backend.recall(before, t - 1 - self.position)
        _, pull_back = step_vjp(self.flow, lam, before, t)
        return pulled(self.flow, sweep, pull_back)
