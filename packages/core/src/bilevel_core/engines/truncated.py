"""Reverse mode through the last K steps only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Tree
from bilevel_core.engines.sweep import start_sweep, sweep_through, through_start
from bilevel_core.flow import Flow, advance, trajectory
from bilevel_core.results import Hypergradient, diagnose

__all__ = ["Truncated"]


@final
@dataclass(frozen=True, kw_only=True)
class Truncated:
    """The backward sweep, stopped after K steps: s_{T-K} is taken not to depend on λ.

    Attributes:
        horizon: K ≥ 1. With K ≥ T the gradient is exact.

    The error decays like the product of the last K contraction factors, so it suits runs that
    nearly converge. Cost: memory of K + 1 states; time of T steps forward and K backward.

    Source: Truncated Back-propagation for Bilevel Optimization (Shaban, Cheng, Hatch, Boots,
    2019), section 3.
    """

    horizon: int

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, found {self.horizon}")

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and the truncated gradient."""
        cut = max(0, steps - self.horizon)
        start = flow.backend.detach(flow.start(lam))
        head = trajectory(flow, lam, start, 0, min(1, steps)).head()
        way = trajectory(flow, lam, advance(flow, lam, start, 0, cut), cut, steps)
        value, sweep = start_sweep(flow, lam, way.last)
        sweep = sweep_through(lam, sweep, way)
        return Hypergradient(
            value=value,
            grad=through_start(flow, lam, sweep) if cut == 0 else sweep[1],
            state=way.last,
            result=diagnose(flow, lam, steps, head, way.tail()),
        )
