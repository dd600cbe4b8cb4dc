"""A number of an optimiser, such as its step size, that may depend on λ and on the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from bilevel_core.tree import map_leaves, named_leaves
from bilevel_core.types import Array, Tree

__all__ = ["Coefficient", "broadcast", "descend"]

Coefficient: TypeAlias = float | Callable[[Tree, int], Tree]
"""A number, or a function `(lam, t)` of λ and the step t ≥ 1 that returns one of

- a number or a scalar array (a learned step size, a schedule),
- an array that broadcasts against every leaf of w,
- a tree like w (one value a parameter).
"""


# A tuple, and not `dict | list | tuple`, which would be made anew in every step.
TREES = (dict, list, tuple)


def broadcast(coefficient: Coefficient, lam: Tree, t: int, w: Tree) -> Tree:
    """Return the coefficient's value at step t for every leaf of w.

    Raises:
        ValueError: it is a tree of another shape than w.
    """
    value = coefficient(lam, t) if callable(coefficient) else coefficient
    if not isinstance(value, TREES):
        return map_leaves(lambda _: value, w)
    found, expected = (dict(named_leaves(tree, "w")) for tree in (value, w))
    if found.keys() != expected.keys():
        missing, other = expected.keys() - found.keys(), found.keys() - expected.keys()
        raise ValueError(
            f"a step size or another coefficient is a tree with nothing for "
            f"{', '.join(sorted(missing)) or 'no leaf'} and with "
            f"{', '.join(sorted(other)) or 'nothing'} that w does not have: give one value for "
            "each leaf of w, or a single one"
        )
    return value


def descend(w: Array, direction: Array, rate: Array | float) -> Array:
    """Return w - rate · direction, for one leaf."""
    if hasattr(w, "untyped_storage"):  # a tensor: one operation instead of two
        if isinstance(rate, float):
            return w.add(direction, alpha=-rate)
        if hasattr(rate, "untyped_storage"):
            return w.addcmul(direction, rate, value=-1)
    return w - rate * direction
