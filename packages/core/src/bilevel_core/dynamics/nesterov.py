"""Nesterov's accelerated gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from bilevel_core.dynamics.coefficient import Coefficient, broadcast, descend
from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree

__all__ = ["Nesterov"]


@final
@dataclass(frozen=True, kw_only=True)
class Nesterov:
    """u_t = w_{t-1} + μ (w_{t-1} - w_{t-2}),  w_t = u_t - η ∇L(u_t).

    Attributes:
        step_size: η, at most 1 / (Lipschitz constant of the gradient).
        momentum: μ, in [0, 1); (√κ - 1) / (√κ + 1) is best for a strongly convex L of condition
            number κ.

    The state is {"w": w_t, "before": w_{t-1}}. Cost: one gradient a step; memory of two vectors.

    Source: Introductory Lectures on Convex Optimization (Nesterov, 2004), section 2.2.1,
    constant step scheme III.
    """

    step_size: Coefficient
    momentum: Coefficient = 0.9
    own_arrays: ClassVar[bool] = True

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return w, which has not moved yet."""
        del lam
        return {"w": w, "before": w}

    def step(self, gradient: Callable[[Tree], Tree], state: Tree, lam: Tree, t: int) -> Tree:
        """Return the next w beside the present one."""
        w, before = state["w"], state["before"]
        eta, mu = broadcast(self.step_size, lam, t, w), broadcast(self.momentum, lam, t, w)
        ahead = map_leaves(lambda w, b, m: w + m * (w - b), w, before, mu)
        moved = map_leaves(descend, ahead, gradient(ahead), eta)
        return {"w": moved, "before": w}

    def params(self, state: Tree) -> Tree:
        """Return w."""
        return state["w"]
