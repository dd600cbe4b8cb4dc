"""Reverse mode through the last K steps only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.divergence import diagnose
from bilevel_core.engines.shared.backward import back_through, begin, finish
from bilevel_core.flow import Instance, Trajectory, advance, start_state, trajectory
from bilevel_core.results import Pulled, Solution
from bilevel_core.types import Tree

__all__ = ["Truncated"]


@final
@dataclass(frozen=True, kw_only=True)
class Truncated:
    """The backward pass, stopped after K steps: s_{T-K} is taken not to depend on λ.

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

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run all T steps and store the last K states."""
        del keep
        cut, start = self._cut(instance), start_state(instance)
        head = trajectory(instance, start, 0, min(1, instance.steps)).head()
        way = trajectory(instance, advance(instance, start, 0, cut), cut, instance.steps)
        return Solution(
            state=way.last, memory=way.history, result=diagnose(instance, (head, way.tail()))
        )

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Go back over the last K steps."""
        cut = self._cut(instance)
        way = Trajectory(
            position=cut, end=instance.steps, history=solution.memory, last=solution.state
        )
        passed = begin(instance, way.last, cotangent)
        passed = back_through(instance, passed, way)
        return finish(instance, passed, (way.head(), way.tail()), whole=cut == 0)

    def _cut(self, instance: Instance) -> int:
        return max(0, instance.steps - self.horizon)
