"""Gradient descent on a set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.dynamics.coefficient import Coefficient, broadcast, descend
from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree

__all__ = ["ProjectedGradient"]


@final
@dataclass(frozen=True, kw_only=True)
class ProjectedGradient:
    """w_t = P(w_{t-1} - η ∇L(w_{t-1}), λ).

    Attributes:
        step_size: η.
        projection: P, a function `(w, lam)` that returns the nearest point of the set. It is
            differentiated where it is smooth; the set may depend on λ.

    The state is w. Where a bound is active at the limit, ∇L does not vanish there and `Implicit`
    refuses the run as `NOT_STATIONARY`: take an engine of f_T, such as `Reverse`.

    Cost: one gradient and one projection a step.

    Source: Introductory Lectures on Convex Optimization (Nesterov, 2004), section 2.2.4.
    """

    step_size: Coefficient
    projection: Callable[[Tree, Tree], Tree]

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return w, projected."""
        return self.projection(w, lam)

    def step(self, gradient: Callable[[Tree], Tree], state: Tree, lam: Tree, t: int) -> Tree:
        """Return the projection of a gradient step."""
        eta = broadcast(self.step_size, lam, t, state)
        moved = map_leaves(descend, state, gradient(state), eta)
        return self.projection(moved, lam)

    def params(self, state: Tree) -> Tree:
        """Return w."""
        return state
