"""Reverse mode that stores the inner states and runs each step again on the way back."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import final

from bilevel_core.divergence import diagnose
from bilevel_core.engines.shared.backward import back_through, begin, finish
from bilevel_core.flow import Instance, Trajectory, start_state, trajectory
from bilevel_core.results import Pulled, Solution
from bilevel_core.types import Tree

__all__ = ["Reverse"]


@final
@dataclass(frozen=True, kw_only=True)
class Reverse:
    """The backward pass over stored states (shared/backward.py).

    No graph spans two steps: each step is run again from its stored state on the way back, so
    memory holds states and not graphs.

    Attributes:
        slack: memory for kept graphs, which former versions had; no graph is kept, and only 0 is
            accepted.

    Cost: memory of T + 1 states and a step's graph; time of T steps forward, and of T steps run
    again and differentiated, whatever the size of λ.

    Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
    Frasconi, Pontil, 2017), Algorithm 1; Bilevel Programming for Hyperparameter Optimization and
    Meta-Learning (Franceschi et al., 2018), Algorithm 1.
    """

    slack: InitVar[float] = 0.0

    def __post_init__(self, slack: float) -> None:
        if slack != 0:
            raise ValueError(
                f"slack must be 0, found {slack}: Reverse keeps no graphs any more; take Unrolled "
                "where there is memory for them"
            )

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run all T steps and store the states."""
        del keep  # The states before the last one are what the verdict needs in any case.
        way = trajectory(instance, start_state(instance), 0, instance.steps)
        return Solution(
            state=way.last,
            memory=way.history,
            result=diagnose(instance, (way.head(), way.tail())),
        )

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Go back over all steps."""
        way = Trajectory(
            position=0, end=instance.steps, history=solution.memory, last=solution.state
        )
        passed = begin(instance, way.last, cotangent)
        passed = back_through(instance, passed, way)
        return finish(instance, passed, (way.head(), way.tail()))
