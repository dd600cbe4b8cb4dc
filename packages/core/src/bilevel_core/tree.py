"""Trees of arrays (dict, list, tuple), without a framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bilevel_core.types import Tree

__all__ = ["add", "is_nothing", "leaves", "map_leaves", "named_leaves", "plain", "rebuild", "views"]


# A tuple, and not `list | tuple`, which is made anew in every call.
SEQUENCES = (list, tuple)


def named_leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) in a fixed order; the path reads as one would index: `λ['a'][0]`."""
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield from named_leaves(child, f"{name}[{key!r}]")
    elif isinstance(tree, SEQUENCES):
        for index, child in enumerate(tree):
            yield from named_leaves(child, f"{name}[{index}]")
    else:
        yield name, tree


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves in a fixed order."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, SEQUENCES):
        return [tree]
    return [leaf for child in tree for leaf in leaves(child)]


def map_leaves(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply a function to the leaves that stand at the same place in every tree."""
    if isinstance(tree, dict):
        return {
            key: map_leaves(function, child, *(other[key] for other in others))
            for key, child in tree.items()
        }
    if isinstance(tree, SEQUENCES):
        children = [map_leaves(function, *together) for together in zip(tree, *others, strict=True)]
        # A named tuple takes its fields one by one.
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return function(tree, *others)


def rebuild(tree: Tree, flat: list[Any]) -> Tree:
    """Return a tree of the same shape with its leaves replaced, in order."""
    remaining = iter(flat)
    return map_leaves(lambda _: next(remaining), tree)


def plain(tree: Tree) -> Tree:
    """Return a tree whose dicts are all of the class `dict`: a framework may tell others apart."""
    return map_leaves(lambda leaf: leaf, tree)


def views(tree: Tree) -> Tree:
    """Return the same arrays as new ones, from which nothing follows yet; nothing is copied."""
    return map_leaves(lambda leaf: leaf.reshape(leaf.shape), tree)


def is_nothing(tree: Tree) -> bool:
    """Say whether a tree is (), which stands for one that is not there."""
    return isinstance(tree, tuple) and not tree


def add(x: Tree, y: Tree) -> Tree:
    """Return x + y, leaf by leaf."""
    return map_leaves(lambda a, b: a + b, x, y)
