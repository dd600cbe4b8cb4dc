"""Find the framework that arrays belong to, without importing one that is not in use."""

from __future__ import annotations

import importlib.util
import sys

from bilevel_core.abstract import Backend, Tree
from bilevel_core.tree import named_leaves

__all__ = ["backend_of"]

FRAMEWORKS = ("torch",)


def _torch() -> Backend:
    from bilevel_core.backends.torch import TorchBackend

    return TorchBackend()


def _loaded() -> list[Backend]:
    """Return the adapters of frameworks that the process has imported already."""
    makers = {"torch": _torch}
    return [makers[name]() for name in FRAMEWORKS if name in sys.modules]


def backend_of(tree: Tree, name: str) -> Backend:
    """Return the one backend that owns every leaf of a tree; `name` stands in the messages.

    Raises:
        TypeError: the tree is empty, or holds a leaf that no framework in use owns.
    """
    found: Backend | None = None
    for path, leaf in named_leaves(tree, name):
        found = found or next((b for b in _loaded() if b.owns(leaf)), None)
        if found is None or not found.owns(leaf):
            raise TypeError(_refusal(path, leaf))
    if found is None:
        raise TypeError(f"{name} holds no array: expected at least one, found {tree!r}")
    return found


def _refusal(path: str, leaf: object) -> str:
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
    expected = " or ".join(f"{name} arrays" for name in FRAMEWORKS)
    message = f"{path} is a {kind}: expected {expected} (in dicts, lists or tuples)"
    if not any(importlib.util.find_spec(name) for name in FRAMEWORKS):
        extras = " or ".join(f"bilevel-core[{name}]" for name in FRAMEWORKS)
        return f"{message}; no framework is installed: install {extras}"
    return f"{message}; convert it, for instance with torch.as_tensor(…, dtype=torch.float64)"
