"""When the outer loop has done enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

__all__ = ["GradientBelow", "OuterRecord", "Patience", "StoppingRule"]


@final
@dataclass(frozen=True, kw_only=True)
class OuterRecord:
    """What is kept of a hyper-iteration.

    Attributes:
        value: f_T(λ).
        grad_norm: ‖∇f_T(λ)‖, in λ itself whatever the optimiser moves.
        seconds: what the hypergradient took.
    """

    value: float
    grad_norm: float
    seconds: float


StoppingRule: TypeAlias = Callable[[Sequence[OuterRecord]], bool]
"""Given the records so far, at least one, say whether to stop."""


@final
@dataclass(frozen=True, kw_only=True)
class Patience:
    """Stop when the best value of the last `steps` is not below the best one before them.

    Attributes:
        steps: hyper-iterations without improvement, at least 1.
        min_improvement: what a value must be below the best one by, at least 0, to count.

    Raises:
        ValueError: an attribute is out of its range.
    """

    steps: int
    min_improvement: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")
        if not self.min_improvement >= 0:
            raise ValueError(f"min_improvement must be at least 0, found {self.min_improvement}")

    def __call__(self, history: Sequence[OuterRecord]) -> bool:
        """Say whether the value has ceased to improve."""
        values = [record.value for record in history]
        before, last = values[: -self.steps], values[-self.steps :]
        if not before:
            return False
        return min(last) >= min(before) - self.min_improvement


@final
@dataclass(frozen=True, kw_only=True)
class GradientBelow:
    """Stop when ‖∇f_T‖ ≤ tolerance × the first one.

    Attributes:
        tolerance: above 0.

    Raises:
        ValueError: the tolerance is not above 0.
    """

    tolerance: float

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, found {self.tolerance}")

    def __call__(self, history: Sequence[OuterRecord]) -> bool:
        """Say whether the gradient has become small."""
        return history[-1].grad_norm <= self.tolerance * history[0].grad_norm
