"""A number of an optimiser, such as its step size, that may depend on λ and on the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree

__all__ = ["Coefficient", "spread"]

Coefficient: TypeAlias = float | Callable[[Tree, int], Tree]
"""A number, or a function `(lam, t)` of λ and the step t ≥ 1 that returns one of

- a number or a scalar array (a learned step size, a schedule),
- an array that broadcasts against every leaf of w,
- a tree like w (one value a parameter).
"""


def spread(coefficient: Coefficient, lam: Tree, t: int, w: Tree) -> Tree:
    """Return the coefficient's value at step t for every leaf of w."""
    value = coefficient(lam, t) if callable(coefficient) else coefficient
    if isinstance(value, dict | list | tuple):
        return value
    return map_leaves(lambda _: value, w)
