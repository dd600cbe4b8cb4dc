"""Engine × dynamics: equal to plain autograd through a loop that is written out by hand."""

import pytest
import torch

from bilevel_core import (
    Adam,
    Checkpointed,
    Custom,
    Forward,
    GradientDescent,
    HeavyBall,
    Hypergradient,
    Implicit,
    Nesterov,
    Problem,
    ProjectedGradient,
    Reverse,
    Unrolled,
    hypergradient,
    solve_inner,
)
from problems import ridge

ENGINES = [Reverse(), Unrolled(), Checkpointed(budget=2), Forward()]
INNER, OUTER = ridge().problem.inner, ridge().problem.outer
PENALTY = ridge().lam


def gradient(w, lam):
    return torch.autograd.grad(INNER(w, lam["penalty"]), w, create_graph=True)[0]


def descend(w, lam, steps):
    for t in range(1, steps + 1):
        w = w - lam["eta"] / t * gradient(w, lam)
    return w


def heavy_ball(w, lam, steps):
    v = torch.zeros_like(w)
    for _ in range(steps):
        v = lam["mu"] * v + gradient(w, lam)
        w = w - lam["eta"] * v
    return w


def nesterov(w, lam, steps):
    before = w
    for _ in range(steps):
        ahead = w + lam["mu"] * (w - before)
        before, w = w, ahead - lam["eta"] * gradient(ahead, lam)
    return w


def adam(w, lam, steps):
    m = v = torch.zeros_like(w)
    for t in range(1, steps + 1):
        g = gradient(w, lam)
        m = lam["mu"] * m + (1 - lam["mu"]) * g
        v = 0.99 * v + 0.01 * g * g
        scale = torch.sqrt(v / (1 - 0.99**t) + 1e-8**2)
        w = w - lam["eta"] * (m / (1 - lam["mu"] ** t)) / scale
    return w


def projected(w, lam, steps):
    w = torch.clamp(w, min=-0.02)
    for _ in range(steps):
        w = torch.clamp(w - lam["eta"] * gradient(w, lam), min=-0.02)
    return w


def custom(w, lam, steps):
    for t in range(1, steps + 1):
        w = torch.tanh(w * lam["mu"] + lam["penalty"] / t)
    return w


CASES = {
    "gradient descent": (
        GradientDescent(step_size=lambda lam, t: lam["eta"] / t),
        descend,
    ),
    "heavy ball": (
        HeavyBall(step_size=lambda lam, t: lam["eta"], momentum=lambda lam, t: lam["mu"]),
        heavy_ball,
    ),
    "Nesterov": (
        Nesterov(step_size=lambda lam, t: lam["eta"], momentum=lambda lam, t: lam["mu"]),
        nesterov,
    ),
    "Adam": (
        Adam(step_size=lambda lam, t: lam["eta"], beta1=lambda lam, t: lam["mu"], beta2=0.99),
        adam,
    ),
    "projected": (
        ProjectedGradient(
            step_size=lambda lam, t: lam["eta"],
            projection=lambda w, lam: torch.clamp(w, min=-0.02),
        ),
        projected,
    ),
    "custom": (
        Custom(update=lambda w, lam, t: torch.tanh(w * lam["mu"] + lam["penalty"] / t)),
        custom,
    ),
}


def make_lam():
    return {
        "penalty": PENALTY.clone(),
        "eta": torch.tensor(0.07, dtype=torch.float64),
        "mu": torch.tensor(0.6, dtype=torch.float64),
    }


PROBLEM = Problem(
    inner=lambda w, lam: INNER(w, lam["penalty"]),
    outer=lambda w, lam: OUTER(w, lam["penalty"]) + lam["eta"] ** 2,
    init=lambda lam: 0.1 * lam["penalty"],
)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2, 8])
@pytest.mark.parametrize("name", CASES)
def test_equals_autograd_through_the_written_out_loop(name, steps, engine):
    dynamics, loop = CASES[name]
    computed = hypergradient(PROBLEM, dynamics, make_lam(), steps=steps, engine=engine)
    lam = {key: leaf.requires_grad_() for key, leaf in make_lam().items()}
    value = PROBLEM.outer(loop(PROBLEM.init(lam), lam, steps), lam)
    expected = torch.autograd.grad(value, list(lam.values()), materialize_grads=True)
    assert torch.allclose(computed.value, value, rtol=1e-12)
    for found, reference in zip(computed.grad.values(), expected, strict=True):
        error = torch.linalg.vector_norm(found - reference)
        assert error <= 1e-10 * torch.linalg.vector_norm(reference) + 1e-15


@pytest.mark.parametrize(
    "dynamics",
    [HeavyBall(step_size=0.05, momentum=0.5), Nesterov(step_size=0.1, momentum=0.3)],
    ids=["heavy ball", "Nesterov"],
)
def test_implicit_has_the_closed_form_whatever_the_dynamics(dynamics):
    known = ridge()
    lam = known.lam.clone().requires_grad_()
    (exact,) = torch.autograd.grad(known.limit(lam), lam)
    computed = hypergradient(known.problem, dynamics, known.lam, steps=600, engine=Implicit())
    assert torch.allclose(computed.grad, exact, rtol=1e-8)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_adam_is_differentiable_at_a_zero_gradient(engine):
    problem = Problem(
        inner=lambda w, lam: 0.5 * lam * (w[0] - 1) ** 2 + 0 * w[1],
        outer=lambda w, lam: (w**2).sum(),
        init=lambda lam: torch.zeros(2, dtype=torch.float64) * lam,
    )
    lam = torch.tensor(0.7, dtype=torch.float64)
    computed = hypergradient(problem, Adam(step_size=0.1), lam, steps=3, engine=engine)
    assert isinstance(computed, Hypergradient)
    assert torch.isfinite(computed.grad)


def test_nesterov_is_faster_than_descent_where_theory_says_so():
    curvature = torch.tensor([1.0, 100.0], dtype=torch.float64)
    problem = Problem(
        inner=lambda w, lam: 0.5 * (curvature * (w - lam) ** 2).sum(),
        outer=lambda w, lam: (w**2).sum(),
        init=torch.zeros_like,
    )
    lam = torch.ones(2, dtype=torch.float64)
    root = 100**0.5
    fast = Nesterov(step_size=0.01, momentum=(root - 1) / (root + 1))
    errors = {
        name: (solve_inner(problem, dynamics, lam, steps=100) - lam).abs().max().item()
        for name, dynamics in {"gd": GradientDescent(step_size=0.01), "nesterov": fast}.items()
    }
    assert errors["gd"] == pytest.approx(0.99**100, rel=1e-6)
    assert errors["nesterov"] < 0.01 * errors["gd"]


def test_adam_without_epsilon_is_refused():
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        Adam(step_size=0.1, epsilon=0.0)
