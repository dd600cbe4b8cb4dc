"""Adam as inner dynamics, differentiable at a zero gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from bilevel_core.dynamics.coefficient import Coefficient, broadcast
from bilevel_core.tree import map_leaves, views
from bilevel_core.types import Tree

__all__ = ["Adam"]


@final
@dataclass(frozen=True, kw_only=True)
class Adam:
    """m_t = β₁ m_{t-1} + (1-β₁) g,  v_t = β₂ v_{t-1} + (1-β₂) g²,  w_t = w_{t-1} - η m̂ / √(v̂ + ε²).

    m̂ and v̂ are the moments divided by 1 - βᵗ. Differs from the textbook in one point: ε² stands
    inside the square root. With √v̂ + ε the derivative at g = 0 is infinite, and the hypergradient
    of any run that starts at a stationary point in one coordinate is NaN.

    Attributes:
        step_size: η.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        epsilon: ε > 0.

    The state is {"w", "first", "second"}. Cost: one gradient a step; memory of three vectors.

    Source: Adam: A Method for Stochastic Optimization (Kingma, Ba, 2015), Algorithm 1.
    """

    step_size: Coefficient
    beta1: Coefficient = 0.9
    beta2: Coefficient = 0.999
    epsilon: float = 1e-8
    own_arrays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, found {self.epsilon}")

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return w with moments of zero."""
        del lam
        zeros = map_leaves(lambda leaf: 0 * leaf, w)
        return {"w": views(w), "first": zeros, "second": zeros}

    def step(self, gradient: Callable[[Tree], Tree], state: Tree, lam: Tree, t: int) -> Tree:
        """Return the next w and moments."""
        w = state["w"]
        eta, b1, b2 = (broadcast(c, lam, t, w) for c in (self.step_size, self.beta1, self.beta2))
        g = gradient(w)
        first = map_leaves(lambda m, g, b: b * m + (1 - b) * g, state["first"], g, b1)
        second = map_leaves(lambda v, g, b: b * v + (1 - b) * g**2, state["second"], g, b2)
        m = map_leaves(lambda m, b: m / (1 - b**t), first, b1)
        v = map_leaves(lambda v, b: v / (1 - b**t), second, b2)
        moved = map_leaves(
            lambda w, m, v, e: w - e * m / (v + self.epsilon**2) ** 0.5, w, m, v, eta
        )
        return {"w": moved, "first": first, "second": second}

    def params(self, state: Tree) -> Tree:
        """Return w."""
        return state["w"]
