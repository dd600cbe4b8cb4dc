"""The Neumann series of an inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Backend, Tree
from bilevel_core.tree import map_leaves

__all__ = ["Neumann"]


@final
@dataclass(frozen=True, kw_only=True)
class Neumann:
    """x = η Σ_{k<K} (I - ηA)^k b, which tends to A⁻¹ b where ‖I - ηA‖ < 1.

    Attributes:
        steps: K, terms of the series.
        step_size: η; a step size with which gradient descent converges will do.

    Cost: K - 1 products; memory of two vectors.

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
        self, product: Callable[[Tree], Tree], b: Tree, backend: Backend, *, symmetric: bool
    ) -> Tree:
        """Return x, near A⁻¹ b; A need not be symmetric."""
        del backend, symmetric
        eta = float(self.step_size)
        term = total = map_leaves(lambda leaf: eta * leaf, b)
        for _ in range(self.steps - 1):
            term = map_leaves(lambda u, a: u - eta * a, term, product(term))
            total = map_leaves(lambda u, v: u + v, total, term)
        return total
