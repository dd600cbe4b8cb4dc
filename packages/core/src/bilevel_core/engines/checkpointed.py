"""Reverse mode under a budget of stored states, by the binomial checkpointing schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Tree
from bilevel_core.engines.sweep import Sweep, start_sweep, sweep_step, through_start
from bilevel_core.flow import Flow, advance, run_ends
from bilevel_core.results import Hypergradient, diagnose

__all__ = ["Checkpointed", "binomial_split"]


@final
@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """The backward sweep of `Reverse`, with at most `budget` states stored at a time.

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

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇f_T(λ)."""
        budget = self.budget or 2 * math.ceil(math.log2(steps + 1)) + 1
        head, tail = run_ends(flow, lam, steps)
        value, sweep = start_sweep(flow, lam, tail[-1])
        sweep = _sweep_back(flow, lam, sweep, head[0], steps, budget)
        return Hypergradient(
            value=value,
            grad=through_start(flow, lam, sweep),
            state=tail[-1],
            result=diagnose(flow, lam, steps, head, tail),
        )


def _sweep_back(flow: Flow, lam: Tree, sweep: Sweep, start: Tree, steps: int, budget: int) -> Sweep:
    """Sweep back over all steps; `start` is s_0 and counts in the budget."""
    stored = [(0, start)]
    end = steps
    # The states in store stand at rising positions, the last of them before step `end`, which is
    # swept next. A loop and not a recursion: a large budget is as deep as the run is long.
    while end > 0:
        position, state = stored[-1]
        if position == end:
            stored.pop()
        elif end - position == 1 or len(stored) == budget:
            # Not bound to a name: it would count beside the budget while the next is computed.
            sweep = sweep_step(flow, lam, sweep, advance(flow, lam, state, position, end - 1), end)
            end -= 1
        else:
            middle = position + binomial_split(end - position, budget - len(stored) + 1)
            further = advance(flow, lam, state, position, middle)
            stored.append((middle, further))
    return sweep


def binomial_split(steps: int, budget: int) -> int:
    """Return how far to advance before the next state is stored, 1 ≤ m < steps.

    With β(c, r) = binomial(c + r, c), the steps that c states can sweep when none runs forward
    more than r times: m is the least that lets `budget - 1` states sweep the rest in r.
    """
    r = 1
    while _beta(budget, r) < steps:
        r += 1
    return max(1, _beta(budget, r - 2), steps - _beta(budget - 1, r))


def _beta(states: int, repetitions: int) -> int:
    return math.comb(states + repetitions, states) if repetitions >= 0 else 0
