"""A linear system solved directly, from the matrix that its products spell out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Array, Backend, Tree
from bilevel_core.tree import leaves, map_leaves

__all__ = ["Dense", "entries", "matrix_of", "solve_matrix"]


@final
@dataclass(frozen=True, kw_only=True)
class Dense:
    """x = A⁻¹ b by LU decomposition of A, whose columns are the products with the unit vectors.

    It has no step size and no number of steps to choose, and solves any system of full rank. Where
    A is singular, x is not finite, or large where a pivot that should be zero is only near it.

    Cost: n products for n entries of b, memory of n² numbers, and time of n³ for the decomposition.

    Source: Matrix Computations (Golub, Van Loan, 2013), section 3.4.
    """

    def __call__(
        self, product: Callable[[Tree], Tree], b: Tree, backend: Backend, *, symmetric: bool
    ) -> Tree:
        """Return x; A need not be symmetric."""
        del symmetric
        return solve_matrix(matrix_of(product, b, backend), b, backend)


def solve_matrix(matrix: Array, b: Tree, backend: Backend) -> Tree:
    """Return x with A x = b; where elimination meets a zero pivot, x is not finite.

    Args:
        matrix: A, of shape (n, n).
        b: a tree of n entries, in the order of the matrix.
        backend: the framework.
    """
    return backend.from_entries([backend.solve(matrix, entries(b, b, backend))], b)


def matrix_of(product: Callable[[Tree], Tree], like: Tree, backend: Backend) -> Array:
    """Return the matrix (n, n) of a linear map from trees like `like`, of n entries, to such trees.

    Rows and columns are in the order of the leaves of `like`.

    Cost: n products, one after another, and memory of n² numbers.
    """
    columns = []
    for index in range(backend.size(like)):
        unit = map_leaves(lambda row: row[0], backend.unit_tangents(like, index, 1))
        columns.append(entries(product(unit), like, backend))
    return backend.namespace.stack(columns, 1)


def entries(tree: Tree, like: Tree, backend: Backend) -> Array:
    """Return the entries (n,) of a tree in the order of the leaves of `like`."""
    # By key and not by order: a framework may return dicts in another order than it was given.
    ordered = map_leaves(lambda _, leaf: leaf, like, tree)
    return backend.namespace.concatenate([leaf.reshape(-1) for leaf in leaves(ordered)])
