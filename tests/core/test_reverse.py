"""The stored engine: one graph at a time, each step run twice, growth seen in the last step."""

import pytest
import torch

from bilevel_core import (
    Adam,
    Checkpointed,
    Code,
    Flow,
    GradientDescent,
    Problem,
    Reverse,
    hypergradient,
)
from bilevel_core.hypergradient import checked_run, value_and_gradient
from bilevel_core.results import Result

SIZE = 12_000


def test_memory_for_graphs_is_refused():
    with pytest.raises(ValueError, match=r"slack must be 0, found 0\.5"):
        Reverse(slack=0.5)


def wide(size: int = SIZE) -> Problem:
    """L = Σ λ w² / 2 + a cubic, so that a step's graph holds more than the state."""
    target = torch.linspace(-1, 1, size, dtype=torch.float64)
    return Problem(
        inner=lambda w, lam: (lam.exp() * (w - target) ** 2).sum() / 2 + (w**3).sum() / 100,
        outer=lambda w, lam: ((w - 2 * target) ** 2).mean(),
        init=lambda lam: torch.zeros_like(target) + 0.1 * lam,
    )


LAM = torch.tensor(-0.3, dtype=torch.float64)


@pytest.mark.parametrize("dynamics", [GradientDescent(step_size=0.1), Adam(step_size=0.1)], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_what_is_stored_does_not_change_a_bit(steps, dynamics):
    stored, checkpointed = (
        hypergradient(wide(), dynamics, LAM, steps=steps, engine=engine)
        for engine in (Reverse(), Checkpointed(budget=2))
    )
    assert torch.equal(stored.grad, checkpointed.grad)
    assert torch.equal(stored.value, checkpointed.value)
    assert stored.result == checkpointed.result


def test_each_step_is_taken_twice(monkeypatch):
    """Once forward and once on the way back, the check aside."""
    problem, descent = wide(), GradientDescent(step_size=0.1)
    hypergradient(problem, descent, LAM, steps=1)  # passes the check
    taken, step = [], Flow.step

    def counting(self, state, lam, seen, t):
        taken.append(t)
        return step(self, state, lam, seen, t)

    monkeypatch.setattr(Flow, "step", counting)
    hypergradient(problem, descent, LAM, steps=20)
    assert taken == [*range(1, 21), *range(20, 0, -1)]


@pytest.mark.parametrize(
    ("steps", "result"), [(53, Result()), (54, Result(code=Code.GROWING, step=54))]
)
def test_growth_is_seen_in_the_last_step(steps, result):
    """|1 - η| = 2: step 54 is 2⁵³ = 2/ε times as long as the first."""
    problem = Problem(
        inner=lambda w, lam: ((w - lam) ** 2).sum() / 2,
        outer=lambda w, lam: (w**2).mean(),
        init=lambda lam: torch.zeros(SIZE, dtype=lam.dtype),
    )
    run = checked_run(problem, GradientDescent(step_size=3.0), LAM, steps=steps, engine=Reverse())
    assert value_and_gradient(Reverse(), run).result == result
