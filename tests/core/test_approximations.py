"""Engines that are not exact for f_T: what they leave out, and when nothing is left out."""

import pytest
import torch

from bilevel_core import (
    ConjugateGradient,
    Direct,
    FixedPoint,
    GradientDescent,
    Implicit,
    Neumann,
    Problem,
    Truncated,
    Unrolled,
    hypergradient,
    solve_inner,
)
from problems import linear_map, ridge

KNOWN = [ridge(), linear_map()]
each_problem = pytest.mark.parametrize("known", KNOWN, ids=lambda k: k.name)


def error(known, engine, steps, exact):
    descent = GradientDescent(step_size=known.eta)
    grad = hypergradient(known.problem, descent, known.lam, steps=steps, engine=engine).grad
    return torch.linalg.vector_norm(grad - exact).item() / torch.linalg.vector_norm(exact).item()


@each_problem
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_direct_is_the_gradient_at_a_fixed_w(known, steps):
    descent, lam = GradientDescent(step_size=known.eta), known.lam.clone().requires_grad_()
    w = solve_inner(known.problem, descent, known.lam, steps=steps)
    value = known.problem.outer(w, lam)
    (expected,) = torch.autograd.grad(value, lam, materialize_grads=True)
    computed = hypergradient(known.problem, descent, known.lam, steps=steps, engine=Direct())
    assert torch.allclose(computed.grad, expected, rtol=1e-12, atol=1e-15)
    assert torch.allclose(computed.value, value.detach(), rtol=1e-12)
    assert torch.equal(computed.state, w)


@each_problem
@pytest.mark.parametrize("horizon", [1, 3, 7, 8, 9])
def test_truncated_holds_the_state_before_its_horizon_constant(known, horizon):
    steps, eta = 8, known.eta
    computed = hypergradient(
        known.problem,
        GradientDescent(step_size=eta),
        known.lam,
        steps=steps,
        engine=Truncated(horizon=horizon),
    )
    lam = known.lam.clone().requires_grad_()
    w = known.problem.init(lam)
    for t in range(1, steps + 1):
        if 1 < t == steps - horizon + 1:
            w = w.detach().requires_grad_()
        w = w if w.requires_grad else w.requires_grad_()
        (g,) = torch.autograd.grad(known.problem.inner(w, lam), w, create_graph=True)
        w = w - eta * g
    (expected,) = torch.autograd.grad(known.problem.outer(w, lam), lam)
    assert torch.allclose(computed.grad, expected, rtol=1e-10, atol=1e-14)


@each_problem
def test_a_longer_horizon_is_nearer_the_truth(known):
    steps = 120
    descent = GradientDescent(step_size=known.eta)
    exact = hypergradient(known.problem, descent, known.lam, steps=steps, engine=Unrolled()).grad
    errors = [error(known, Truncated(horizon=k), steps, exact) for k in (1, 10, 40, steps)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


@each_problem
@pytest.mark.parametrize(
    "make_solver",
    [
        lambda eta: ConjugateGradient(),
        lambda eta: Neumann(steps=900, step_size=eta),
        lambda eta: FixedPoint(step_size=eta),
    ],
    ids=["cg", "neumann", "fixed point"],
)
def test_implicit_is_the_closed_form_at_the_optimum(known, make_solver):
    lam = known.lam.clone().requires_grad_()
    (exact,) = torch.autograd.grad(known.limit(lam), lam)
    assert error(known, Implicit(solver=make_solver(known.eta)), 900, exact) < 1e-8


def test_implicit_differentiates_the_condition_and_not_the_dynamics():
    """A step size that depends on λ, or a start that does, does not enter the limit."""
    known = ridge()
    descent = GradientDescent(step_size=lambda lam, t: 0.05 + 0.02 * torch.sigmoid(lam.sum()))
    lam = known.lam.clone().requires_grad_()
    (exact,) = torch.autograd.grad(known.limit(lam), lam)
    computed = hypergradient(known.problem, descent, known.lam, steps=2000, engine=Implicit())
    assert torch.allclose(computed.grad, exact, rtol=1e-8)


def test_implicit_through_trees():
    target = torch.tensor([2.0, -1.0], dtype=torch.float64)
    problem = Problem(
        inner=lambda w, lam: (
            (lam["p"] * (w["a"] - target) ** 2).sum() + (w["b"] ** 2 * lam["p"]).sum()
        ),
        outer=lambda w, lam: (w["a"] * target).sum() + (w["b"] ** 2).sum() + lam["q"][0],
        init=lambda lam: {"a": torch.zeros(2, dtype=torch.float64), "b": 1.0 + 0 * lam["p"]},
    )
    lam = {"p": target.abs(), "q": [torch.zeros((), dtype=torch.float64)]}
    descent = GradientDescent(step_size=0.2)
    grad = hypergradient(problem, descent, lam, steps=400, engine=Implicit()).grad
    assert torch.allclose(grad["p"], torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert grad["q"][0] == 1


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_horizon_of_nothing_is_refused(horizon):
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        Truncated(horizon=horizon)
