"""Find the framework that arrays belong to, without importing one that is not in use."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass

from bilevel_core.abstract import Backend
from bilevel_core.arrays import framework
from bilevel_core.tree import named_leaves
from bilevel_core.types import Tree

__all__ = ["backend_of", "other_leaf"]


def _torch() -> Backend:
    from bilevel_core.backends.torch import TorchBackend

    return TorchBackend()


def _jax() -> Backend:
    from bilevel_core.backends.jax import JaxBackend

    return JaxBackend()


MAKERS = {"torch": _torch, "jax": _jax}


def _owner(leaf: object) -> Backend | None:
    """Return the adapter that owns a leaf, among those of frameworks that are imported already."""
    for name, make in MAKERS.items():
        if name in sys.modules and (backend := make()).owns(leaf):
            return backend
    return None


def backend_of(tree: Tree, name: str) -> Backend:
    """Return the one backend that owns every leaf of a tree; `name` stands in the messages.

    Raises:
        TypeError: the tree is empty, holds a leaf that no framework in use owns, or arrays of two
            frameworks.
    """
    found: Backend | None = None
    for path, leaf in named_leaves(tree, name):
        if found is not None and found.owns(leaf):
            continue
        owner = _owner(leaf)
        if owner is None:
            raise TypeError(_refusal(path, leaf))
        if found is not None:
            raise TypeError(
                f"{path} is a {framework(owner)} array, but {name} begins with "
                f"{framework(found)} arrays: make all of {name} arrays of one framework"
            )
        found = owner
    if found is None:
        raise TypeError(f"{name} holds no array: expected at least one, found {tree!r}")
    return found


def other_leaf(leaf: object) -> str:
    """Return what to do about a leaf that is nothing, or a tree of another kind; else nothing."""
    if leaf is None:
        return (
            "leave it out, as in {k: v for k, v in tree.items() if v is not None}, or split the "
            "tree first (equinox.partition)"
        )
    if hasattr(leaf, "to_dict"):
        return "give its to_dict()"
    if is_dataclass(leaf) or hasattr(type(leaf), "tree_flatten") or isinstance(leaf, Mapping):
        return (
            "give plain dicts, lists and tuples: dict(…), dataclasses.asdict(…), flax.core.unfreeze"
            "(…), or the list of jax.tree.flatten(…) with jax.tree.unflatten in the objectives"
        )
    return ""


def _refusal(path: str, leaf: object) -> str:
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
    expected = " or ".join(f"{name} arrays" for name in MAKERS)
    message = f"{path} is a {kind}: expected {expected} (in dicts, lists or tuples)"
    if not any(importlib.util.find_spec(name) for name in MAKERS):
        extras = " or ".join(f"bilevel-core[{name}]" for name in MAKERS)
        return f"{message}; no framework is installed: install {extras}"
    if hasattr(leaf, "named_parameters") or kind == "builtins.generator":
        return (
            f"{message}; of a network give dict(net.named_parameters()), and call it with "
            "torch.func.functional_call"
        )
    if remedy := other_leaf(leaf):
        return f"{message}; {remedy}"
    return f"{message}; convert it, for instance with torch.as_tensor(…, dtype=torch.float64)"
