"""Numbers of several seeds in few."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from bilevel_apps.scoring import half_interval

__all__ = ["Spread", "spread"]


@final
@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean, half its 95 % interval, median, lowest and highest."""

    mean: float
    ci95: float
    median: float
    lowest: float
    highest: float


def spread(values: Sequence[float]) -> Spread:
    """Return the mean with its interval, as for accuracies, and the rest.

    Args:
        values: at least one; the interval of a single one is 0.
    """
    return Spread(
        mean=statistics.fmean(values),
        ci95=half_interval(values),
        median=statistics.median(values),
        lowest=min(values),
        highest=max(values),
    )
