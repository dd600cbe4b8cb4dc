"""Engine × dynamics: equal to plain autograd through a loop that is written out by hand."""

from functools import cache

import pytest
import torch

from bilevel_core import (
    Adam,
    Checkpointed,
    Custom,
    Dynamics,
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
from frameworks import TORCH, Framework, crossed
from problems import ridge

ENGINES = [Reverse(), Unrolled(), Checkpointed(budget=2), Forward()]
RIDGE = ridge()
INNER, PENALTY = RIDGE.problem.inner, RIDGE.lam


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


LOOPS = {
    "gradient descent": descend,
    "heavy ball": heavy_ball,
    "Nesterov": nesterov,
    "Adam": adam,
    "projected": projected,
    "custom": custom,
}


@cache
def dynamics_on(framework: Framework) -> dict[str, Dynamics]:
    """Return the dynamics that the loops above write out."""
    xp = framework.xp
    eta, mu = (lambda lam, t: lam["eta"]), (lambda lam, t: lam["mu"])
    return {
        "gradient descent": GradientDescent(step_size=lambda lam, t: lam["eta"] / t),
        "heavy ball": HeavyBall(step_size=eta, momentum=mu),
        "Nesterov": Nesterov(step_size=eta, momentum=mu),
        "Adam": Adam(step_size=eta, beta1=mu, beta2=0.99),
        "projected": ProjectedGradient(
            step_size=eta, projection=lambda w, lam: xp.clip(w, -0.02, None)
        ),
        "custom": Custom(update=lambda w, lam, t: xp.tanh(w * lam["mu"] + lam["penalty"] / t)),
    }


@cache
def problem_on(framework: Framework) -> Problem:
    """Return ridge regression with all hyperparameters in one tree."""
    known = RIDGE.on(framework)
    return Problem(
        inner=lambda w, lam: known.inner(w, lam["penalty"]),
        # It uses them all, because some dynamics have no momentum and some no step size.
        outer=lambda w, lam: known.outer(w, lam["penalty"]) + lam["eta"] ** 2 * lam["mu"],
        init=lambda lam: 0.1 * lam["penalty"],
    )


def make_lam():
    return {
        "penalty": PENALTY.clone(),
        "eta": torch.tensor(0.07, dtype=torch.float64),
        "mu": torch.tensor(0.6, dtype=torch.float64),
    }


@pytest.mark.parametrize(
    ("name", "steps", "engine", "framework"),
    crossed(
        LOOPS,
        [0, 1, 2, 8],
        ENGINES,
        on_jax=[(LOOPS, [8], [Reverse(), Forward()]), (["Adam"], [8], [Unrolled(), ENGINES[2]])],
    ),
    ids=str,
)
def test_equals_autograd_through_the_written_out_loop(name, steps, engine, framework: Framework):
    computed = hypergradient(
        problem_on(framework),
        dynamics_on(framework)[name],
        framework.arrays(make_lam()),
        steps=steps,
        engine=engine,
    )
    lam = {key: leaf.requires_grad_() for key, leaf in make_lam().items()}
    problem = problem_on(TORCH)
    value = problem.outer(LOOPS[name](problem.init(lam), lam, steps), lam)
    expected = torch.autograd.grad(value, list(lam.values()), materialize_grads=True)
    assert torch.allclose(framework.tensors(computed.value), value, rtol=1e-12)
    grad = framework.tensors(computed.grad)
    for key, reference in zip(lam, expected, strict=True):
        error = torch.linalg.vector_norm(grad[key] - reference)
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


class Swapped:
    """Gradient descent whose second leaf follows from the first one: it makes no promise."""

    def init(self, w, lam):
        return w

    def step(self, gradient, state, lam, t):
        slope = gradient(state)
        a = state["a"] - 0.1 * slope["a"]
        return {"a": a, "b": 2 * a - 0.1 * slope["b"]}

    def params(self, state):
        return state


def tied(w, lam):
    """An inner objective in which both leaves and λ meet."""
    return (torch.sin(w["a"] * w["b"]) + lam * w["a"] ** 2 + torch.exp(0.1 * lam * w["b"])).sum()


def steps_by_hand(dynamics, lam, start, steps):
    """Return w_T by autograd where each gradient is that of fresh arrays, kept apart by name."""

    def gradient(w):
        inputs = {key: leaf + torch.zeros_like(leaf) for key, leaf in w.items()}
        apart = lam + torch.zeros_like(lam)
        found = torch.autograd.grad(tied(inputs, apart), list(inputs.values()), create_graph=True)
        return dict(zip(inputs, found, strict=True))

    state = dynamics.init(start, lam)
    for t in range(1, steps + 1):
        state = dynamics.step(gradient, state, lam, t)
    return dynamics.params(state)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize(
    "dynamics",
    [
        GradientDescent(step_size=0.1),
        GradientDescent(step_size=lambda lam, t: 0.1 * lam),
        HeavyBall(step_size=0.1, momentum=0.5),
        Nesterov(step_size=0.1, momentum=0.5),
        Adam(step_size=0.1),
        Swapped(),
    ],
    ids=lambda dynamics: type(dynamics).__name__,
)
def test_what_w_shares_with_the_hyperparameters_counts_once(dynamics, engine):
    """The leaves of w_0 are one tensor, and λ follows from it."""
    problem = Problem(inner=tied, outer=lambda w, lam: (w["a"] + 3 * w["b"]).sum(), init=dict)
    seed = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    # λ is the start itself, or made of it.
    for lam in (seed, 0.5 * seed + 0.1):
        start = {"a": seed, "b": seed}
        expected = steps_by_hand(dynamics, lam, start, 3)
        found = solve_inner(problem, dynamics, lam, steps=3, engine=engine, start=start)
        for key, weight in (("a", 1.0), ("b", 3.0)):
            assert torch.allclose(found[key], expected[key], rtol=1e-13)
            assert torch.allclose(
                *(
                    torch.autograd.grad(weight * w[key].sum(), seed, retain_graph=True)[0]
                    for w in (found, expected)
                ),
                rtol=1e-11,
            )
