"""Numbers of several seeds in few."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from scipy.special import stdtrit  # type: ignore[import-untyped]

from bilevel_apps.scoring.score import half_interval

__all__ = ["Summary", "summary"]


@final
@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean, half its 95 % interval (None for one value), median, lowest and highest."""

    mean: float
    ci95: float | None
    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        """Return the mean, and its interval if it has one."""
        interval = "" if self.ci95 is None else f" ± {self.ci95:.2g}"
        return f"{self.mean:.3g}{interval}"


def summary(values: Sequence[float]) -> Summary:
    """Return the mean with its interval, and the rest.

    Seeds are few, so that the interval is Student's: t·std/√n, with t the 97.5 % point of n - 1
    degrees of freedom (12.7 for two values, 4.3 for three, 1.96 for very many).

    Args:
        values: at least one.
    """
    return Summary(
        mean=statistics.fmean(values),
        ci95=half_interval(values, _student(len(values))) if len(values) > 1 else None,
        median=statistics.median(values),
        lowest=min(values),
        highest=max(values),
    )


def _student(n: int) -> float:
    """Return t for the mean of n values."""
    return float(stdtrit(n - 1, 0.975))
