"""What is measured of arrays and made from them, in any framework, by its array functions."""

from __future__ import annotations

import math
from typing import Any

from bilevel_core.abstract import Backend
from bilevel_core.tree import leaves, map_leaves, rebuild
from bilevel_core.types import Array, Tree

__all__ = [
    "distance",
    "dot",
    "entries",
    "epsilon",
    "floating",
    "framework",
    "from_entries",
    "is_floating",
    "norm",
    "root_epsilon",
    "signature",
    "size",
    "solve",
    "unit_tangents",
    "zeros",
]


def framework(backend: Backend) -> str:
    """Return the framework's name, as its extra is called."""
    name: str = backend.namespace.__name__
    return name.partition(".")[0]


def signature(leaf: Array) -> tuple[tuple[int, ...], str]:
    """Return (shape, dtype) of an array, for checks and messages."""
    return tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")


def is_floating(leaf: Array) -> bool:
    """Say whether an array holds real floating-point numbers."""
    return "float" in str(leaf.dtype)


def floating(tree: Tree) -> list[Array]:
    """Return the leaves that hold floating-point numbers."""
    return [leaf for leaf in leaves(tree) if is_floating(leaf)]


def epsilon(tree: Tree, backend: Backend) -> float:
    """Return the largest machine epsilon among a tree's floating-point arrays."""
    finfo = backend.namespace.finfo
    return max(float(finfo(leaf.dtype).eps) for leaf in floating(tree))


def root_epsilon(tree: Tree, backend: Backend) -> float:
    """Return √ε, and no more than 0.03 in half precision, where it would accept anything."""
    return min(math.sqrt(epsilon(tree, backend)), 0.03)


def size(tree: Tree) -> int:
    """Return the number of entries of a tree."""
    return sum(math.prod(leaf.shape) for leaf in leaves(tree))


def zeros(tree: Tree, backend: Backend) -> Tree:
    """Return a tree of zeros like another."""
    return map_leaves(backend.namespace.zeros_like, tree)


def dot(x: Tree, y: Tree, backend: Backend) -> Array:
    """Return ⟨x, y⟩ over all entries, a scalar array."""
    products = leaves(map_leaves(lambda a, b: (a * b).sum(), x, y))
    return backend.namespace.stack(products).sum()


def norm(tree: Tree, backend: Backend) -> float:
    """Return the Euclidean norm over all of a tree's floating-point entries.

    It is NaN or infinite if any entry is, and no square overflows or vanishes on the way.
    """
    return math.hypot(*(_norm(leaf, backend) for leaf in floating(backend.detach(tree))))


def distance(x: Tree, y: Tree, backend: Backend) -> float:
    """Return ‖x - y‖."""
    return norm(map_leaves(lambda a, b: a - b, x, y), backend)


def _norm(leaf: Array, backend: Backend) -> float:
    """Return a leaf's norm, from numbers of the size of 1 where squares would leave the range."""
    xp = backend.namespace
    found, kind = float(xp.linalg.vector_norm(leaf)), xp.finfo(leaf.dtype)
    squares_fit = math.sqrt(float(kind.tiny) / float(kind.eps)) < found < math.inf
    if squares_fit or math.prod(leaf.shape) == 0:
        return found
    largest = float(abs(leaf).max())
    if not 0 < largest < math.inf:
        return largest
    return largest * float(xp.linalg.vector_norm(leaf / largest))


def unit_tangents(tree: Tree, first: int, count: int, backend: Backend) -> Tree:
    """Return rows first … first+count-1 of the identity on a tree's entries, as a batch."""
    xp, tangents = backend.namespace, []
    for leaf in leaves(tree):
        entries = math.prod(leaf.shape)
        rows = xp.arange(count, **_placed(leaf))[:, None] + first
        hot = rows == xp.arange(entries, **_placed(leaf))[None, :]
        tangents.append(xp.asarray(hot, dtype=leaf.dtype).reshape(count, *leaf.shape))
        first -= entries
    return rebuild(tree, tangents)


def _placed(leaf: Array) -> dict[str, Any]:
    """Return the argument that puts a new array where another one is."""
    # A traced array is on no device that could be asked for.
    return {"device": leaf.device} if hasattr(leaf, "untyped_storage") else {}


def from_entries(parts: list[Array], like: Tree, backend: Backend) -> Tree:
    """Return a tree from its entries, one-dimensional arrays that follow each other.

    Its leaves have the shapes and types of those of `like`.
    """
    xp, shaped, first = backend.namespace, [], 0
    flat = xp.concatenate(parts)
    for leaf in leaves(like):
        past = first + math.prod(leaf.shape)
        shaped.append(xp.asarray(flat[first:past].reshape(leaf.shape), dtype=leaf.dtype))
        first = past
    return rebuild(like, shaped)


def entries(tree: Tree, like: Tree, backend: Backend) -> Array:
    """Return the entries (n,) of a tree in the order of the leaves of `like`."""
    # By key and not by order: a framework may return dicts in another order than it was given.
    ordered = map_leaves(lambda _, leaf: leaf, like, tree)
    return backend.namespace.concatenate([leaf.reshape(-1) for leaf in leaves(ordered)])


def solve(matrix: Array, b: Array, backend: Backend) -> Array:
    """Return x (n,) with A x = b for A (n, n); not finite where a pivot of A is zero."""
    linalg = backend.namespace.linalg
    if not hasattr(linalg, "solve_ex"):
        return linalg.solve(matrix, b)
    solution, info = linalg.solve_ex(matrix, b)  # torch's `solve` raises
    return backend.namespace.where(info == 0, solution, math.nan)
