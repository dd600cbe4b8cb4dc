"""Joint problems, stochastic inner objectives, and the report on convergence."""

from functools import partial

import pytest
import torch

from bilevel_core import (
    Checkpointed,
    ConvergenceError,
    Forward,
    GradientDescent,
    Implicit,
    Problem,
    Reverse,
    Unrolled,
    convergence_report,
    hypergradient,
    joint_problem,
    minimize,
    solve_inner,
)
from problems import ridge, shift

DESCENT = GradientDescent(step_size=0.1)
ENGINES = [Reverse(), Unrolled(), Checkpointed(budget=2), Forward()]


def make_folds(count=4, n=20, d=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    y = torch.randn(n, dtype=torch.float64, generator=generator)

    def fold(j):
        val = torch.arange(n) % count == j

        return Problem(
            inner=lambda w, lam: ((x[~val] @ w - y[~val]) ** 2).mean() + lam.exp() @ w**2,
            outer=lambda w, lam: ((x[val] @ w - y[val]) ** 2).sum(),
            init=torch.zeros_like,
        )

    return [fold(j) for j in range(count)], torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_folds_together_are_the_mean_of_the_folds_apart(engine):
    folds, lam = make_folds()
    together = hypergradient(joint_problem(folds), DESCENT, lam, steps=5, engine=engine)
    apart = [hypergradient(fold, DESCENT, lam, steps=5) for fold in folds]
    assert torch.allclose(together.value, torch.stack([a.value for a in apart]).mean(), rtol=1e-12)
    assert torch.allclose(together.grad, torch.stack([a.grad for a in apart]).mean(0), rtol=1e-10)
    for w, one in zip(together.state, apart, strict=True):
        assert torch.allclose(w, one.state, rtol=1e-12)


def test_folds_in_turn_follow_each_folds_own_hypergradient():
    folds, lam = make_folds()
    run = minimize(
        lambda k: folds[k % len(folds)],
        DESCENT,
        lam,
        steps=3,
        outer_steps=6,
        optimizer=partial(torch.optim.SGD, lr=0.125),  # a power of two: no rounding
    )
    for k in range(6):
        computed = hypergradient(folds[k % len(folds)], DESCENT, lam, steps=3)
        assert run.values[k] == computed.value.item()
        lam = lam - 0.125 * computed.grad
    assert torch.equal(run.lam, lam)


def test_joint_problems_refuse_what_they_cannot_join():
    with pytest.raises(ValueError, match="at least one problem"):
        joint_problem([])
    with pytest.raises(ValueError, match="batches cannot be joined"):
        joint_problem([stochastic()])


X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def stochastic(batches=lambda t: X[3 * (t % 4) : 3 * (t % 4) + 3]):
    return Problem(
        inner=lambda w, lam, batch: ((batch @ w - 1) ** 2).mean() + lam.exp() @ w**2,
        outer=lambda w, lam: ((X @ w - 1) ** 2).mean(),
        init=torch.zeros_like,
        batches=batches,
    )


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_each_step_has_its_batch_in_both_sweeps(engine):
    problem, steps = stochastic(), 7
    lam = torch.zeros(3, dtype=torch.float64)
    computed = hypergradient(problem, DESCENT, lam, steps=steps, engine=engine)
    leaf = lam.clone().requires_grad_()
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for t in range(1, steps + 1):
        loss = problem.inner(w, leaf, X[3 * (t % 4) : 3 * (t % 4) + 3])
        w = w - 0.1 * torch.autograd.grad(loss, w, create_graph=True)[0]
    value = problem.outer(w, leaf)
    (expected,) = torch.autograd.grad(value, leaf)
    assert torch.allclose(computed.value, value, rtol=1e-12)
    assert torch.allclose(computed.grad, expected, rtol=1e-10)


def test_batches_are_asked_for_steps_one_to_t():
    asked = []

    def batches(t):
        asked.append(t)
        return X

    solve_inner(stochastic(batches), DESCENT, torch.zeros(3, dtype=torch.float64), steps=4)
    assert set(asked) == {1, 2, 3, 4}


def test_implicit_refuses_batches():
    lam = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="the problem has batches"):
        hypergradient(stochastic(), DESCENT, lam, steps=2, engine=Implicit())


def test_the_report_shows_theorem_and_rate():
    known = ridge()
    report = convergence_report(known.problem, DESCENT, known.lam, [160, 10, 40], limit_steps=1500)
    assert [row.steps for row in report.rows] == [10, 40, 160]
    for key in ("distance", "grad_error"):
        values = [getattr(row, key) for row in report.rows]
        assert values == sorted(values, reverse=True)
    assert report.limit == pytest.approx(known.limit(known.lam).item(), rel=1e-12)
    for row in report.rows:
        exact = known.value(known.lam, 0.1, row.steps).item()
        assert row.value == pytest.approx(exact, rel=1e-12)
        assert row.value_gap == pytest.approx(exact - report.limit, rel=1e-6, abs=1e-12)
    assert "contraction a step" in str(report)
    assert len(str(report).splitlines()) == 5


def test_the_rate_is_that_of_the_contraction():
    known = shift()  # w_T - w = -λ (1 - η)ᵀ
    report = convergence_report(
        known.problem, GradientDescent(step_size=0.2), known.lam, [1, 5, 20], limit_steps=400
    )
    assert report.rate == pytest.approx(0.8, rel=1e-9)
    assert report.rows[1].distance == pytest.approx(1.7 * 0.8**5, rel=1e-9)


def test_a_run_that_has_no_limit_yet_has_no_report():
    known = ridge()
    with pytest.raises(ConvergenceError):
        convergence_report(known.problem, DESCENT, known.lam, [1], limit_steps=2)
    with pytest.raises(ValueError, match="steps_list is empty"):
        convergence_report(known.problem, DESCENT, known.lam, [])
