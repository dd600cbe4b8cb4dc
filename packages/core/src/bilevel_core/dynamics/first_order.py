"""Dynamics whose gradient is taken as a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Dynamics, Gradient
from bilevel_core.types import Tree

__all__ = ["FirstOrder"]


@final
@dataclass(frozen=True)
class FirstOrder:
    """The steps of other dynamics, with ∇L(w_{t-1}) held constant when they are differentiated.

    So no second derivative of L is taken: A_t is that of the optimiser alone, I for gradient
    descent. λ acts through w_0, step sizes and the like, and not through L.

    Attributes:
        dynamics: the steps.

    Cost: that of the dynamics; on the way back no product with ∇²L.

    Source: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks (Finn, Abbeel, Levine,
    2017), section 5.2, "first-order approximation".
    """

    dynamics: Dynamics

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return the state of the dynamics."""
        return self.dynamics.init(w, lam)

    def step(self, gradient: Gradient, state: Tree, lam: Tree, t: int) -> Tree:
        """Take a step of the dynamics along a constant gradient."""
        return self.dynamics.step(gradient.held(), state, lam, t)

    def params(self, state: Tree) -> Tree:
        """Return the parameters of the dynamics."""
        return self.dynamics.params(state)
