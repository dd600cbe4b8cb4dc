"""The Neumann series of an inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Backend
from bilevel_core.tree import add, map_leaves
from bilevel_core.types import Tree

__all__ = ["Neumann"]


@final
@dataclass(frozen=True, kw_only=True)
class Neumann:
    """x = η Σ_{k<K} (I - ηA)^k b, which tends to A⁻¹ b where ‖I - ηA‖ < 1.

    From a guess x_0 it is x_0 and the series of b - A x_0.

    Attributes:
        steps: K, terms of the series.
        step_size: η; a step size with which gradient descent converges will do.

    Cost: K - 1 products, and one for a guess; memory of two vectors.

    Raises:
        ValueError: `steps` is below 1.

    Source: Optimizing Millions of Hyperparameters by Implicit Differentiation (Lorraine, Vicol,
    Duvenaud, 2020), section 3.2.
    """

    steps: int = 100
    step_size: float

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
        """Return x, near A⁻¹ b; A need not be symmetric."""
        del backend, symmetric
        eta = float(self.step_size)
        if guess is not None:
            b = map_leaves(lambda a, c: c - a, product(guess), b)
        term = total = map_leaves(lambda leaf: eta * leaf, b)
        for _ in range(self.steps - 1):
            term = map_leaves(lambda u, a: u - eta * a, term, product(term))
            total = map_leaves(lambda u, v: u + v, total, term)
        return total if guess is None else add(guess, total)
