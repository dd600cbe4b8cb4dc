"""The stored engine: which graphs it keeps, and that they change nothing but time and memory."""

import pytest
import torch

from bilevel_core import (
    Adam,
    Checkpointed,
    Code,
    GradientDescent,
    Problem,
    Reverse,
    hypergradient,
)
from bilevel_core.backends.torch import TorchBackend
from bilevel_core.engines import reverse
from bilevel_core.engines.sweep import step_vjp
from bilevel_core.results import Result
from bilevel_core.validation import checked_flow

SIZE = 12_000  # entries, above the threshold for keeping graphs


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
@pytest.mark.parametrize("slack", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_kept_graphs_do_not_change_a_bit(steps, slack, dynamics):
    problem = wide()
    none, some, checkpointed = (
        hypergradient(problem, dynamics, LAM, steps=steps, engine=engine)
        for engine in (Reverse(slack=0.0), Reverse(slack=slack), Checkpointed(budget=2))
    )
    for other in (some, checkpointed):
        assert torch.equal(none.grad, other.grad)
        assert torch.equal(none.value, other.value)
        assert none.result == other.result


def count_steps(monkeypatch, engine: Reverse, steps: int, size: int = SIZE) -> int:
    """Count how often an inner step is taken, the check aside."""
    problem, descent = wide(size), GradientDescent(step_size=0.1)
    hypergradient(problem, descent, LAM, steps=1)  # passes the check
    taken = []
    step = reverse.Flow.step

    def counting(self, state, lam, t):
        taken.append(t)
        return step(self, state, lam, t)

    monkeypatch.setattr(reverse.Flow, "step", counting)
    hypergradient(problem, descent, LAM, steps=steps, engine=engine)
    monkeypatch.undo()
    return len(taken)


def test_a_step_whose_graph_is_kept_is_taken_once(monkeypatch):
    assert count_steps(monkeypatch, Reverse(slack=0.0), 20) == 40
    assert count_steps(monkeypatch, Reverse(slack=1000.0), 20) == 20
    assert 20 < count_steps(monkeypatch, Reverse(slack=2.0), 20) < 38


def test_two_graphs_are_kept_to_weigh_one(monkeypatch):
    assert count_steps(monkeypatch, Reverse(slack=0.001), 20) == 38


def test_as_many_graphs_are_kept_as_the_slack_has_room_for(monkeypatch):
    """A graph takes what it holds beside the state, which is stored anyway."""
    flow, lam = checked_flow(wide(), GradientDescent(step_size=0.1), LAM, 20)
    first, _ = step_vjp(flow, lam, flow.start(lam).detach(), 1)
    second, _ = step_vjp(flow, lam, first.detach(), 2)
    beside = flow.backend.graph_entries(second, first) - SIZE
    slack = 7.5 * beside / (20 * SIZE)
    assert count_steps(monkeypatch, Reverse(slack=slack), 20) == 40 - 7


def test_small_states_are_not_worth_weighing(monkeypatch):
    assert count_steps(monkeypatch, Reverse(slack=1000.0), 20, size=9_999) == 40
    assert count_steps(monkeypatch, Reverse(slack=1000.0), 20, size=10_000) == 20


@pytest.mark.parametrize("slack", [0.0, 1e-5, 1000.0])
@pytest.mark.parametrize(
    ("steps", "result"), [(53, Result()), (54, Result(code=Code.GROWING, step=54))]
)
def test_growth_is_seen_in_the_last_step(steps, result, slack):
    """|1 - η| = 2: step 54 is 2⁵³ = 2/ε times as long as the first. Kept: no graph, some, all."""
    problem = Problem(
        inner=lambda w, lam: ((w - lam) ** 2).sum() / 2,
        outer=lambda w, lam: (w**2).mean(),
        init=lambda lam: torch.zeros(SIZE, dtype=lam.dtype),
    )
    flow, lam = checked_flow(problem, GradientDescent(step_size=3.0), LAM, steps)
    assert Reverse(slack=slack)(flow, lam, steps).result == result


def test_a_graph_is_weighed_by_the_tensors_that_it_holds():
    backend = TorchBackend()
    x, w = torch.ones(50, dtype=torch.float64), torch.ones(50, dtype=torch.float64)

    def function(w: torch.Tensor) -> torch.Tensor:
        return ((w * x).exp() * w).sum()

    first, _ = backend.vjp(function, w)
    second, _ = backend.vjp(function, w.clone())
    # w, and the exponential; the product w x is not needed again, and x is in both.
    assert backend.graph_entries(second, first) == 100


class Twice(torch.autograd.Function):
    """2 u x, keeping a wide tensor in the usual way and another on its context."""

    @staticmethod
    def forward(ctx, u, x):
        ctx.save_for_backward(u, x, x.repeat(3))
        ctx.beside = x.repeat(2)
        return 2 * u * x

    @staticmethod
    def backward(ctx, upstream):
        u, x, _ = ctx.saved_tensors
        return 2 * upstream * x, 2 * upstream * u


class Square(torch.autograd.Function):
    """x², whose derivative is a function of the user's own too: a step's graph holds that one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return Twice.apply(upstream, x)


def test_what_the_users_own_functions_keep_is_weighed_too():
    backend = TorchBackend()
    w, u = (torch.ones(50, dtype=torch.float64) for _ in range(2))
    one, _ = backend.vjp(lambda w: Twice.apply(u, w).sum(), w)
    two, _ = backend.vjp(lambda w: Twice.apply(u, w).sum(), w.clone())
    assert backend.graph_entries(one, ()) == 50 + 50 + 150 + 100
    assert backend.graph_entries(two, one) == 50 + 150 + 100  # u is in both


def test_the_slack_holds_with_the_users_own_functions():
    problem = Problem(
        inner=lambda w, lam: lam.exp() * Square.apply(w).sum(),
        outer=lambda w, lam: (w**2).mean(),
        init=lambda lam: torch.ones(SIZE, dtype=lam.dtype),
    )
    flow, lam = checked_flow(problem, GradientDescent(step_size=0.1), LAM, 20)
    # A graph holds at least the two wide tensors, five states: four have room in one state a step.
    kept, _ = reverse._keep_graphs(flow, lam, flow.start(lam), 20, 1.0)
    assert len(kept) in (2, 3, 4)


def test_negative_slack_is_refused():
    with pytest.raises(ValueError, match="slack must be at least 0, found -1"):
        Reverse(slack=-1)
