"""Gradient descent as inner dynamics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from bilevel_core.dynamics.coefficient import Coefficient, broadcast, descend
from bilevel_core.tree import map_leaves, views
from bilevel_core.types import Tree

__all__ = ["GradientDescent"]


@final
@dataclass(frozen=True, kw_only=True)
class GradientDescent:
    """w_t = w_{t-1} - η ∇L(w_{t-1}), the full-batch steps of Eq. 10.

    Attributes:
        step_size: η, in units of w over gradient.

    The state is w itself. Cost: one gradient of the inner objective a step.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 2.3 and Eq. 10.
    """

    step_size: Coefficient
    own_arrays: ClassVar[bool] = True

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return w: gradient descent keeps nothing else."""
        del lam
        return views(w)

    def step(self, gradient: Callable[[Tree], Tree], state: Tree, lam: Tree, t: int) -> Tree:
        """Return w - η ∇L(w)."""
        eta = broadcast(self.step_size, lam, t, state)
        return map_leaves(descend, state, gradient(state), eta)

    def params(self, state: Tree) -> Tree:
        """Return w."""
        return state
