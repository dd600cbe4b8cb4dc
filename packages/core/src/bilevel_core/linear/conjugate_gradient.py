"""Conjugate gradient, for symmetric positive definite operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Backend
from bilevel_core.arrays import dot, norm
from bilevel_core.tree import map_leaves
from bilevel_core.types import Array, Tree

__all__ = ["ConjugateGradient"]


@final
@dataclass(frozen=True, kw_only=True)
class ConjugateGradient:
    """x_{k+1} = x_k + α_k p_k along conjugate directions, from x_0 = 0 or a guess.

    Attributes:
        steps: products at most; the dimension is enough in exact arithmetic.
        tolerance: stop when the residual is this fraction of b; 0 stops at an exact zero only.

    Cost: one product a step; memory of four vectors. Under `jax.jit` no number can be looked at,
    and all steps are taken.

    Raises:
        ValueError: `steps` is below 1, or the operator is declared not to be symmetric.

    Source: Methods of Conjugate Gradients for Solving Linear Systems (Hestenes, Stiefel, 1952),
    section 3.
    """

    steps: int = 100
    tolerance: float = 1e-12

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")

    def __call__(
        self,
        product: Callable[[Tree], Tree],
        b: Tree,
        backend: Backend,
        *,
        symmetric: bool,
        guess: Tree | None = None,
    ) -> Tree:
        """Return x, near A⁻¹ b, or raise `ValueError` where A is not symmetric."""
        if not symmetric:
            raise ValueError(
                "conjugate gradient needs a symmetric operator, and this one is declared not to "
                "be: the iterates would tend to no solution; use Neumann or FixedPoint"
            )
        if not backend.is_concrete(b):
            return self._traced(product, b, backend, guess)
        # By a power of two, which changes no digit: squares of a small b would vanish.
        unit = _power_of_two(norm(b, backend))
        b = map_leaves(lambda leaf: leaf / unit, b)
        start = dot(b, b, backend)
        if guess is None:
            x, residual = map_leaves(lambda leaf: 0 * leaf, b), b
        else:
            x = map_leaves(lambda _, leaf: leaf / unit, b, guess)
            residual = map_leaves(lambda c, a: c - a, b, product(x))
        direction, square = residual, dot(residual, residual, backend)
        for _ in range(self.steps):
            # Looked at before the step, so that the iterate that converged is the one returned,
            # and a zero residual is never divided by.
            if float(square) <= self.tolerance**2 * float(start):
                break
            along = product(direction)
            # Plain numbers, which leave each leaf the type it has.
            rate = float(square / dot(direction, along, backend))
            x = map_leaves(lambda u, p, rate=rate: u + rate * p, x, direction)
            residual = map_leaves(lambda r, a, rate=rate: r - rate * a, residual, along)
            previous, square = square, dot(residual, residual, backend)
            turn = float(square / previous)
            direction = map_leaves(lambda r, p, turn=turn: r + turn * p, residual, direction)
        return map_leaves(lambda leaf: leaf * unit, x)

    def _traced(
        self, product: Callable[[Tree], Tree], b: Tree, backend: Backend, guess: Tree | None
    ) -> Tree:
        """Return x where no number can be looked at: all steps, without effect once converged."""
        xp = backend.namespace
        x = map_leaves(lambda leaf: 0 * leaf, b) if guess is None else guess
        residual = b if guess is None else map_leaves(lambda c, a: c - a, b, product(x))
        enough = self.tolerance**2 * dot(b, b, backend)

        def times(rate: Array, leaf: Array) -> Array:
            return xp.asarray(rate * leaf, dtype=leaf.dtype)

        def step(carry: Tree, fixed: Tree, t: int) -> Tree:
            del fixed, t
            x, residual, direction, square = carry
            along, active = product(direction), square > enough
            curvature = xp.where(active, dot(direction, along, backend), 1)
            rate = xp.where(active, square / curvature, 0)
            x = map_leaves(lambda u, p: u + times(rate, p), x, direction)
            residual = map_leaves(lambda r, a: r - times(rate, a), residual, along)
            after = xp.where(active, dot(residual, residual, backend), square)
            turn = xp.where(active, after / xp.where(active, square, 1), 0)
            direction = map_leaves(lambda r, p: r + times(turn, p), residual, direction)
            return x, residual, direction, after

        carry = (x, residual, residual, dot(residual, residual, backend))
        return backend.loop(step, carry, (), range(self.steps))[1][0]


def _power_of_two(size: float) -> float:
    """Return the largest power of two up to a size; 1 where it is zero or not finite."""
    return math.ldexp(1.0, math.frexp(size)[1] - 1) if 0 < size < math.inf else 1.0
