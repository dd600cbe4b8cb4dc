"""Loops over steps in plain Python, for whatever runs step by step."""

from __future__ import annotations

from collections.abc import Callable

from bilevel_core.abstract import Tree

__all__ = ["fold", "record"]


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
