"""What the adapters share: loops over steps in plain Python, and a look at a norm's range."""

from __future__ import annotations

import math
from collections.abc import Callable

from bilevel_core.abstract import Tree

__all__ = ["fold", "record", "squares_fit"]


def squares_fit(norm: float, tiny: float, epsilon: float) -> bool:
    """Say whether a norm is one whose squares kept all digits; not where it is NaN.

    Args:
        norm: as computed from squares.
        tiny: the least normal number of its type.
        epsilon: the machine epsilon of its type.
    """
    return math.sqrt(tiny / epsilon) < norm < math.inf


def fold(body: Callable[[Tree, Tree, int], Tree], carry: Tree, fixed: Tree, times: range) -> Tree:
    """Return the carry after `carry = body(carry, fixed, t)` for every t."""
    for t in times:
        carry = body(carry, fixed, t)
    return carry


def record(
    body: Callable[[Tree, Tree, int], Tree], carry: Tree, fixed: Tree, times: range
) -> tuple[list[Tree], Tree]:
    """Do what `fold` does; returns the carries before each step, and the last one."""
    history = []
    for t in times:
        history.append(carry)
        carry = body(carry, fixed, t)
    return history, carry
