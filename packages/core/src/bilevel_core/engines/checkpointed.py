"""Reverse mode under a budget of stored states, by the binomial checkpointing schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from bilevel_core.divergence import diagnose
from bilevel_core.engines.shared.backward import Backward, apart, back_step, begin, finish
from bilevel_core.flow import Ends, Instance, advance, run_ends
from bilevel_core.results import Pulled, Solution
from bilevel_core.types import Tree

__all__ = ["Checkpointed", "binomial_split"]


@final
@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """The backward pass of `Reverse`, with at most `budget` states stored at a time.

    States that are not stored are computed again from the nearest stored one before them. The
    gradient has the bits of `Reverse`: the same products in the same order.

    Attributes:
        budget: states that may be stored, at least 1; None takes 2 ⌈log₂(T + 1)⌉ + 1.

    Cost: memory of `budget` states, the present one, a step's graph, and four states (the first
    two and the last two) for the verdict on the run. Where c is the budget and r the least number
    with binomial(c + r, c) ≥ T, no step is run forward more than r + 1 times, and no schedule runs
    fewer in all.

    Source: Algorithm 799: Revolve (Griewank, Walther, 2000), section 2.
    """

    budget: int | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget must be at least 1 state, found {self.budget}")

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run all T steps and store both ends."""
        del keep
        ends = run_ends(instance)
        return Solution(state=ends[1][-1], memory=ends, result=diagnose(instance, ends))

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Go back over all steps, by the schedule."""
        budget = self.budget or 2 * math.ceil(math.log2(instance.steps + 1)) + 1
        passed = begin(instance, solution.state, cotangent)
        passed = _back(instance, passed, solution.memory, budget)
        return finish(instance, passed, solution.memory)


def _back(instance: Instance, passed: Backward, ends: Ends, budget: int) -> Backward:
    """Go back over all steps; s_0 counts in the budget."""
    (start, *_), tail = ends
    stored = [(0, start)]
    end = instance.steps
    # The states in store stand at rising positions, the last of them before step `end`, which is
    # next on the way back. A loop and not a recursion: a large budget is as deep as the run is
    # long.
    while end > 0:
        position, state = stored[-1]
        if position == end:
            stored.pop()
        elif end - position == 1 or len(stored) == budget:
            # Not bound to a name: it would count beside the budget while the next is computed.
            passed = _back_one(
                instance, passed, advance(instance, state, position, end - 1), tail, end
            )
            end -= 1
        else:
            middle = position + binomial_split(end - position, budget - len(stored) + 1)
            further = advance(instance, state, position, middle)
            stored.append((middle, further))
    return passed


def _back_one(
    instance: Instance, passed: Backward, before: Tree, tail: list[Tree], t: int
) -> Backward:
    """Go back over step t; the state before the last one was at hand already, and is compared."""
    last = t == instance.steps
    if last and not instance.backend.compiles:
        alpha, gathered, gap = passed
        passed = alpha, gathered, apart(before, tail[0], gap, instance.backend)
    return back_step(instance, passed, before, tail[-1] if last else (), t)


def binomial_split(steps: int, budget: int) -> int:
    """Return how far to advance before the next state is stored, 1 ≤ m < steps.

    With β(c, r) = binomial(c + r, c), the steps that c states can go back over when none runs
    forward more than r times: m is the least that lets `budget - 1` states do the rest in r.
    """
    r = 1
    while _beta(budget, r) < steps:
        r += 1
    return max(1, _beta(budget, r - 2), steps - _beta(budget - 1, r))


def _beta(states: int, repetitions: int) -> int:
    return math.comb(states + repetitions, states)
