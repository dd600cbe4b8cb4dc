"""The checkpointed engine: the bits of the stored one, within its budget, at the least work."""

import math
import weakref
from dataclasses import dataclass

import pytest
import torch

from bilevel_core import Checkpointed, GradientDescent, Reverse, hypergradient
from bilevel_core.engines import checkpointed
from bilevel_core.engines.checkpointed import binomial_split
from problems import ridge, shift


@pytest.mark.parametrize("budget", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 17, 40])
def test_the_bits_are_those_of_the_stored_engine(budget, steps):
    known, descent = ridge(), GradientDescent(step_size=0.1)
    stored, checkpointed = (
        hypergradient(known.problem, descent, known.lam, steps=steps, engine=engine)
        for engine in (Reverse(), Checkpointed(budget=budget))
    )
    assert torch.equal(stored.grad, checkpointed.grad)
    assert torch.equal(stored.value, checkpointed.value)
    assert torch.equal(stored.state, checkpointed.state)


def forward_steps(steps: int, budget: int) -> int:
    """Count the forward steps of the schedule, besides the first run to the end."""
    if steps == 0:
        return 0
    if steps == 1 or budget == 1:
        return steps * (steps - 1) // 2
    middle = binomial_split(steps, budget)
    return middle + forward_steps(steps - middle, budget - 1) + forward_steps(middle, budget)


def least(steps: int, budget: int) -> int:
    """Return the optimum of the recursion over all schedules, by dynamic programming."""
    table: dict[tuple[int, int], int] = {}
    for c in range(1, budget + 1):
        for n in range(steps + 1):
            if n <= 1 or c == 1:
                table[n, c] = n * (n - 1) // 2
            else:
                table[n, c] = min(m + table[n - m, c - 1] + table[m, c] for m in range(1, n))
    return table[steps, budget]


@pytest.mark.parametrize("budget", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 19, 50])
def test_no_schedule_does_with_less_work(steps, budget):
    assert forward_steps(steps, budget) == least(steps, budget)


def test_a_run_of_ten_thousand_steps_needs_forty_states_and_few_repetitions():
    assert math.comb(40 + 3, 40) >= 10_000
    assert forward_steps(10_000, 40) < 3 * 10_000


@dataclass
class CountingDescent:
    """Gradient descent that counts its steps."""

    runs: int = 0

    def init(self, w, lam):
        return w

    def step(self, gradient, state, lam, t):
        self.runs += 1
        return state - 0.1 * gradient(state)

    def params(self, state):
        return state


@pytest.mark.parametrize(
    ("steps", "given", "budget"), [(60, 4, 4), (63, None, 2 * 6 + 1), (64, None, 2 * 7 + 1)]
)
def test_the_work_counted_in_a_real_run(steps, given, budget):
    known, counting = ridge(), CountingDescent()
    hypergradient(
        known.problem, counting, known.lam, steps=steps, engine=Checkpointed(budget=given)
    )
    checks, first_run, backward = 4, steps, steps  # two to see whether it draws, one derivative
    assert counting.runs == checks + first_run + forward_steps(steps, budget) + backward


@pytest.mark.parametrize(("steps", "budget"), [(2000, 2000), (1500, 700), (1200, 5000)])
def test_long_runs_with_large_budgets_end(steps, budget):
    known, descent = shift(), GradientDescent(step_size=0.001)
    stored, computed = (
        hypergradient(known.problem, descent, known.lam, steps=steps, engine=engine)
        for engine in (Reverse(), Checkpointed(budget=budget))
    )
    assert torch.equal(stored.grad, computed.grad)


@pytest.mark.parametrize("budget", [1, 2, 3, 6, 12, 60])
@pytest.mark.parametrize("steps", [1, 2, 19, 50])
def test_no_more_states_are_stored_than_the_budget_allows(steps, budget, monkeypatch):
    """Watch every state that the schedule computes for as long as something holds it."""
    watched, held = [], []

    def watching(instance, state, position, end):
        alive = {id(ref()) for ref in watched if ref() is not None}
        held.append(1 + len(alive))  # s_0 is stored too
        further = advance(instance, state, position, end)
        if further is not state:
            watched.append(weakref.ref(further))
        return further

    advance = checkpointed.advance
    monkeypatch.setattr(checkpointed, "advance", watching)
    known, descent = shift(), GradientDescent(step_size=0.1)
    hypergradient(
        known.problem, descent, known.lam, steps=steps, engine=Checkpointed(budget=budget)
    )
    assert max(held) == min(budget, steps)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="budget must be at least 1 state, found 0"):
        Checkpointed(budget=0)
