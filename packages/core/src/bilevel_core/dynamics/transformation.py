"""Optimisers of optax and TorchOpt as inner dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any, final

from bilevel_core.abstract import Gradient
from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree

__all__ = ["Transformation"]


@final
@dataclass(frozen=True)
class Transformation:
    """w_t = w_{t-1} + u_t, with the updates u_t that a gradient transformation makes of ∇L.

    Attributes:
        rule: whatever has the functions `init(params)` and `update(gradient, state, params)` of
            optax: `optax.adam(0.1)`, a chain, `torchopt.adam(0.1)`; or a function of λ that returns
            one, such as `lambda lam: optax.sgd(lam["rate"])`. A schedule's counter is carried
            along. Adam's own ε stands outside of the square root: give optax's `eps_root` as well,
            or the derivative at a zero gradient is not a number.

    The state is {"w", "memory"}. Cost: the rule's.
    """

    rule: Any

    def __post_init__(self) -> None:
        if not (callable(self.rule) or _is_rule(self.rule)):
            raise TypeError(
                f"rule is a {type(self.rule).__name__}, which has no init and update: give "
                "optax.sgd(0.1), or a function of λ that returns one"
            )

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return w and the rule's memory."""
        return {"w": w, "memory": self._rule(lam).init(w)}

    def step(self, gradient: Gradient, state: Tree, lam: Tree, t: int) -> Tree:
        """Add the rule's updates."""
        del t
        w, update = state["w"], self._rule(lam).update
        # TorchOpt writes into the gradient unless it is told not to.
        extra = {"inplace": False} if "inplace" in signature(update).parameters else {}
        updates, memory = update(gradient(w), state["memory"], params=w, **extra)
        moved = map_leaves(lambda x, u: x + u, w, updates)
        return {"w": moved, "memory": memory}

    def params(self, state: Tree) -> Tree:
        """Return w."""
        return state["w"]

    def _rule(self, lam: Tree) -> Any:
        return self.rule if _is_rule(self.rule) else self.rule(lam)


def _is_rule(rule: Any) -> bool:
    return hasattr(rule, "init") and hasattr(rule, "update")
