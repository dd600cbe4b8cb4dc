"""Any map as inner dynamics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Tree

__all__ = ["Custom"]


@final
@dataclass(frozen=True, kw_only=True)
class Custom:
    """w_t = Φ(w_{t-1}, λ, t), for a Φ of the user's own.

    Attributes:
        update: Φ, a pure function `(w, lam, t)` that returns a tree like w.

    The state is w, and the inner objective of the problem is not looked at.
    """

    update: Callable[[Tree, Tree, int], Tree]

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return w."""
        del lam
        return w

    def step(self, gradient: Callable[[Tree], Tree], state: Tree, lam: Tree, t: int) -> Tree:
        """Return Φ(w, λ, t)."""
        del gradient
        return self.update(state, lam, t)

    def params(self, state: Tree) -> Tree:
        """Return w."""
        return state
