"""A linear system as a fixed point, iterated until it stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Backend
from bilevel_core.arrays import norm
from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree

__all__ = ["FixedPoint"]


@final
@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """x_{k+1} = x_k - η (A x_k - b), from x_0 = 0 or a guess, until the residual is small.

    Its iterates are the partial sums of `Neumann`; this one looks at the residual and stops.

    Attributes:
        steps: products at most.
        step_size: η; it converges where ‖I - ηA‖ < 1.
        tolerance: stop when the residual is this fraction of b.

    Cost: one product a step; memory of two vectors.

    Raises:
        ValueError: `steps` is below 1.

    Source: On the Iteration Complexity of Hypergradient Computation (Grazzi, Franceschi, Pontil,
    Salzo, 2020), section 3, "Fixed point".
    """

    steps: int = 1000
    step_size: float
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
        """Return x, near A⁻¹ b; A need not be symmetric."""
        del symmetric
        eta, enough = float(self.step_size), self.tolerance * norm(b, backend)
        x = map_leaves(lambda leaf: 0 * leaf, b) if guess is None else guess
        for _ in range(self.steps):
            residual = map_leaves(lambda a, c: a - c, product(x), b)
            if norm(residual, backend) <= enough:
                break
            x = map_leaves(lambda u, r: u - eta * r, x, residual)
        return x
