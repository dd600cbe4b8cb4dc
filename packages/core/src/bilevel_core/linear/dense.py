"""A linear system solved directly, from the matrix that its products spell out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Backend
from bilevel_core.arrays import entries, from_entries, size, solve, unit_tangents
from bilevel_core.tree import map_leaves
from bilevel_core.types import Array, Tree

__all__ = ["Dense", "matrix_of", "solve_matrix"]


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
        self,
        product: Callable[[Tree], Tree],
        b: Tree,
        backend: Backend,
        *,
        symmetric: bool,
        guess: Tree | None = None,
    ) -> Tree:
        """Return x; A need not be symmetric."""
        del symmetric, guess  # a direct solver starts nowhere
        return solve_matrix(matrix_of(product, b, backend), b, backend)


def solve_matrix(matrix: Array, b: Tree, backend: Backend) -> Tree:
    """Return x with A x = b; where elimination meets a zero pivot, x is not finite.

    Args:
        matrix: A, of shape (n, n).
        b: a tree of n entries, in the order of the matrix.
        backend: the framework.
    """
    return from_entries([solve(matrix, entries(b, b, backend), backend)], b, backend)


def matrix_of(product: Callable[[Tree], Tree], like: Tree, backend: Backend) -> Array:
    """Return the matrix (n, n) of a linear map from trees like `like`, of n entries, to such trees.

    Rows and columns are in the order of the leaves of `like`.

    Cost: n products, one after another, and memory of n² numbers.
    """
    columns = []
    for index in range(size(like)):
        unit = map_leaves(lambda row: row[0], unit_tangents(like, index, 1, backend))
        columns.append(entries(product(unit), like, backend))
    return backend.namespace.stack(columns, 1)
