"""Every engine against closed forms, finite differences and plain autograd, in float64."""

import pytest
import torch

from bilevel_core import (
    Checkpointed,
    Code,
    Direct,
    Exact,
    Forward,
    GradientDescent,
    Hypergradient,
    Implicit,
    Problem,
    Reverse,
    Spectral,
    Truncated,
    Unrolled,
    hypergradient,
    solve_inner,
)
from bilevel_core.hypergradient import checked_run, value_and_gradient
from bilevel_core.results import Result
from frameworks import Framework, crossed
from problems import ALL, Known, ridge, shift

RIDGE, LINEAR_MAP = ALL[1], ALL[2]

# Engines of the exact ∇f_T, in the variants that take different paths through the code.
ENGINES = [
    Reverse(),
    Unrolled(),
    Checkpointed(),
    Checkpointed(budget=1),
    Checkpointed(budget=3),
    Truncated(horizon=1000),
    Forward(),
    Forward(chunk=2),
]
ON_QUADRATICS = [*ENGINES, Spectral()]
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=str)
each_on_quadratics = pytest.mark.parametrize("engine", ON_QUADRATICS, ids=str)
each_problem = pytest.mark.parametrize("known", ALL, ids=str)


def close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-10) -> None:
    scale = torch.linalg.vector_norm(expected).item()
    assert torch.linalg.vector_norm(actual - expected).item() <= relative * scale + 1e-14


@each_on_quadratics
def test_a_given_start_has_its_part_of_what_is_pulled_back(engine):
    """On ½(w - λ)², w_T = λ + q (w_0 - λ) with q = (1 - η)^T."""
    known, w_0 = shift(), torch.tensor(0.4, dtype=torch.float64)
    descent = GradientDescent(step_size=0.25)
    run = checked_run(known.problem, descent, known.lam, steps=3, engine=engine, start=w_0)
    pulled = engine.pull(run, engine.run(run, keep=True), torch.ones_like(w_0))
    assert pulled.start.item() == pytest.approx(0.75**3, rel=1e-12)
    assert pulled.lam.item() == pytest.approx(1 - 0.75**3, rel=1e-12)


@pytest.mark.parametrize(("chunk", "runs"), [(None, 1), (5, 1), (2, 1 + 3), (1, 1 + 5)])
def test_a_chunk_is_a_run_of_its_own(chunk, runs):
    """A run that has tangents of all five hyperparameters is the only one."""
    known, asked = ridge(), []

    def step_size(lam, t):
        asked.append(t)
        return 0.1

    hypergradient(
        known.problem,
        GradientDescent(step_size=step_size),
        known.lam,
        steps=7,
        engine=Forward(chunk=chunk),
    )
    assert asked.count(7) == runs


@pytest.mark.parametrize(
    ("engine", "known", "steps", "framework"),
    crossed(
        ON_QUADRATICS,
        ALL,
        [0, 1, 2, 8, 50],
        on_jax=[
            (ON_QUADRATICS, [RIDGE], [8]),
            ([Reverse(), Forward()], [LINEAR_MAP, shift()], [0, 1, 50]),
        ],
    ),
    ids=str,
)
def test_value_and_gradient_are_those_of_the_closed_form(
    engine, known: Known, steps: int, framework: Framework
):
    found = hypergradient(
        known.on(framework),
        GradientDescent(step_size=known.eta),
        framework.arrays(known.lam),
        steps=steps,
        engine=engine,
    )
    lam = known.lam.clone().requires_grad_()
    value = known.value(lam, known.eta, steps)
    (grad,) = torch.autograd.grad(value, lam)
    close(framework.tensors(found.value), value.detach())
    close(framework.tensors(found.grad), grad)


@each_on_quadratics
def test_hand_derived_gradient_of_the_scalar_problem(engine):
    known, eta, steps = shift(), 0.25, 7
    computed = hypergradient(
        known.problem, GradientDescent(step_size=eta), known.lam, steps=steps, engine=engine
    )
    close(computed.grad, known.lam * (1 - (1 - eta) ** steps) ** 2)


@pytest.mark.parametrize(
    ("engine", "known", "framework"),
    crossed(
        [Reverse(), Checkpointed(), Forward(), Implicit(), Exact(), Spectral()],
        [RIDGE, LINEAR_MAP],
        on_jax=[([Reverse(), Implicit(), Exact()], [RIDGE])],
    ),
    ids=str,
)
def test_long_runs_reach_the_exact_bilevel_problem(engine, known: Known, framework: Framework):
    """Theorem 3.2 at work: f_T and its gradient tend to those of the exact inner solution."""
    lam = known.lam.clone().requires_grad_()
    exact = known.limit(lam)
    (exact_grad,) = torch.autograd.grad(exact, lam)
    descent = GradientDescent(step_size=known.eta)
    errors = []
    for steps in (50, 150, 700):
        found = hypergradient(
            known.on(framework), descent, framework.arrays(known.lam), steps=steps, engine=engine
        )
        grad = framework.tensors(found.grad)
        errors.append(torch.linalg.vector_norm(grad - exact_grad).item())
    assert errors == sorted(errors, reverse=True)
    close(grad, exact_grad, 1e-8)
    close(framework.tensors(found.value), exact.detach(), 1e-8)


class ValueWithHypergradient(torch.autograd.Function):
    """f_T with an engine's gradient as its derivative, for gradcheck."""

    @staticmethod
    def forward(ctx, lam, run):
        computed = run(lam)
        ctx.save_for_backward(computed.grad)
        return computed.value

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return upstream * grad, None


@pytest.mark.parametrize(
    ("engine", "steps"),
    [*((engine, 5) for engine in ON_QUADRATICS), (Implicit(), 400), (Exact(), 0)],
    ids=str,
)
@each_problem
def test_gradcheck(engine, steps, known: Known):
    descent = GradientDescent(step_size=known.eta)

    def run(lam: torch.Tensor) -> Hypergradient:
        return hypergradient(known.problem, descent, lam.detach(), steps=steps, engine=engine)

    lam = known.lam.clone().requires_grad_()
    assert torch.autograd.gradcheck(ValueWithHypergradient.apply, (lam, run))


@each_engine
def test_learned_step_sizes_and_initial_weights_in_a_tree(engine):
    """λ = {w_0, one step size a step, one a parameter}; reference: autograd through the loop."""
    known, steps = ridge(), 6
    inner, outer = known.problem.inner, known.problem.outer
    lam = {
        "start": known.lam,
        "schedule": torch.linspace(0.05, 0.1, steps, dtype=torch.float64),
        "each": [torch.linspace(0.5, 1.0, len(known.lam), dtype=torch.float64)],
    }
    problem = Problem(
        inner=lambda w, lam: inner(w, lam["start"]),
        outer=lambda w, lam: outer(w, lam["start"]),
        init=lambda lam: 1.0 * lam["start"],
    )
    dynamics = GradientDescent(step_size=lambda lam, t: lam["schedule"][t - 1] * lam["each"][0])
    computed = hypergradient(problem, dynamics, lam, steps=steps, engine=engine)

    start, schedule, each = (
        leaf.clone().requires_grad_() for leaf in (lam["start"], lam["schedule"], lam["each"][0])
    )
    w = 1.0 * start
    for t in range(steps):
        (g,) = torch.autograd.grad(inner(w, start), w, create_graph=True)
        w = w - schedule[t] * each * g
    expected = torch.autograd.grad(outer(w, start), (start, schedule, each))
    found = (computed.grad["start"], computed.grad["schedule"], computed.grad["each"][0])
    for actual, reference in zip(found, expected, strict=True):
        close(actual, reference)


@each_engine
def test_one_step_size_a_leaf(engine):
    problem = Problem(
        inner=lambda w, lam: ((w["a"] - lam) ** 2).sum() + ((w["b"] + lam) ** 2).sum(),
        outer=lambda w, lam: (w["a"] * w["b"]).sum(),
        init=lambda lam: {"a": torch.zeros_like(lam), "b": torch.zeros_like(lam)},
    )
    lam = torch.tensor([0.3, -2.0], dtype=torch.float64)
    dynamics = GradientDescent(step_size=lambda lam, t: {"a": 0.1, "b": 0.2})
    computed = hypergradient(problem, dynamics, lam, steps=1, engine=engine)
    close(computed.grad, -2 * 0.2 * 0.4 * lam)


@each_on_quadratics
def test_captured_and_leaf_tensors_that_require_grad_stay_untouched(engine):
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    lam = torch.nn.Parameter(torch.full((3,), 0.5, dtype=torch.float64))
    problem = Problem(
        inner=lambda w, lam: ((w - lam * weight) ** 2).sum(),
        outer=lambda w, lam: (w**2).sum(),
        init=torch.zeros_like,
    )
    computed = hypergradient(problem, GradientDescent(step_size=0.1), lam, steps=3, engine=engine)
    assert weight.grad is None
    assert lam.grad is None
    for tensor in (computed.value, computed.grad, computed.state):
        assert not tensor.requires_grad


@pytest.mark.parametrize(
    "engine", [*ON_QUADRATICS, Truncated(horizon=3), Direct(), Implicit()], ids=str
)
def test_each_engine_names_the_step_at_which_a_run_diverges(engine):
    """|1 - η| = 2.5: step 41, and no step before, is more than 1/ε times as long as the first."""
    known, fast = shift(), GradientDescent(step_size=3.5)
    run = checked_run(known.problem, fast, known.lam, steps=100, engine=engine)
    assert value_and_gradient(engine, run).result == Result(code=Code.GROWING, step=41)


@pytest.mark.parametrize("chunk", [None, 1, 2, 100])
def test_the_chunk_does_not_change_the_gradient(chunk):
    known, descent = ridge(), GradientDescent(step_size=0.1)
    stored, carried = (
        hypergradient(known.problem, descent, known.lam, steps=4, engine=engine)
        for engine in (Reverse(), Forward(chunk=chunk))
    )
    close(carried.grad, stored.grad)


@pytest.mark.parametrize("chunk", [0, -2])
def test_a_chunk_of_nothing_is_refused(chunk):
    with pytest.raises(ValueError, match=f"at least 1 hyperparameter, found {chunk}"):
        Forward(chunk=chunk)


def test_solve_inner_is_the_last_state_of_the_engine():
    known, dynamics = ridge(), GradientDescent(step_size=0.1)
    w = solve_inner(known.problem, dynamics, known.lam, steps=9)
    assert torch.equal(w, hypergradient(known.problem, dynamics, known.lam, steps=9).state)
