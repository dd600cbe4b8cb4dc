"""Any map as inner dynamics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.types import Tree

__all__ = ["Custom"]


@final
@dataclass(frozen=True, kw_only=True)
class Custom:
    """w_t = Φ(w_{t-1}, λ, t), for a Φ of the user's own.

    Attributes:
        update: Φ, a pure function `(w, lam, t)` that returns a tree like w.

    The state is w, and the step does not look at the problem's inner objective. `Implicit` does,
    and refuses a map whose limit is not a stationary point of it (`NOT_STATIONARY`).
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
