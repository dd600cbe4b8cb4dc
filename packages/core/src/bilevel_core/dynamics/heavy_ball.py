"""Gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from bilevel_core.dynamics.coefficient import Coefficient, broadcast, descend
from bilevel_core.tree import map_leaves, views
from bilevel_core.types import Tree

__all__ = ["HeavyBall"]


@final
@dataclass(frozen=True, kw_only=True)
class HeavyBall:
    """v_t = μ v_{t-1} + ∇L(w_{t-1}),  w_t = w_{t-1} - η v_t,  from v_0 = 0.

    Attributes:
        step_size: η.
        momentum: μ, in [0, 1).

    The state is {"w": w, "velocity": v}. Its map has no symmetric Jacobian: that is why `Implicit`
    differentiates ∇L = 0 instead. Cost: one gradient a step; memory of two vectors.

    Source: Some Methods of Speeding Up the Convergence of Iteration Methods (Polyak, 1964).
    """

    step_size: Coefficient
    momentum: Coefficient = 0.9
    own_arrays: ClassVar[bool] = True

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return w at rest."""
        del lam
        return {"w": views(w), "velocity": map_leaves(lambda leaf: 0 * leaf, w)}

    def step(self, gradient: Callable[[Tree], Tree], state: Tree, lam: Tree, t: int) -> Tree:
        """Return the next w and velocity."""
        w = state["w"]
        eta, mu = broadcast(self.step_size, lam, t, w), broadcast(self.momentum, lam, t, w)
        v = map_leaves(lambda v, g, m: m * v + g, state["velocity"], gradient(w), mu)
        return {"w": map_leaves(descend, w, v, eta), "velocity": v}

    def params(self, state: Tree) -> Tree:
        """Return w."""
        return state["w"]
