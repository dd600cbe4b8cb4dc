"""What a message says: whose fault it is, which leaf, and what to do."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bilevel_core import (
    Adam,
    Checkpointed,
    Code,
    DivergenceError,
    Forward,
    GradientDescent,
    Implicit,
    Problem,
    Reverse,
    Transformation,
    Unrolled,
    check_hypergradient,
    hypergradient,
    minimize,
    outer_objective,
    solve_inner,
)
from bilevel_core.hypergradient import checked_run, value_and_gradient
from frameworks import JAX, TORCH, each_framework, jax, needs_jax
from problems import ridge, shift

DESCENT = GradientDescent(step_size=0.1)
LAM = torch.tensor(0.5, dtype=torch.float64)


def from_start(inner, start=(1.0, 2.0), dtype=torch.float64) -> Problem:
    return Problem(
        inner=inner,
        outer=lambda w, lam: (w**2).sum() + lam,
        init=lambda lam: torch.tensor(start, dtype=dtype),
    )


UNDEFINED = {
    "a norm at 0": (lambda w, lam: lam * torch.sqrt((w**2).sum()), (0.0, 0.0)),
    "0 / 0": (lambda w, lam: (lam * w / (w**2).sum()).sum(), (0.0, 0.0)),
    "a root below 0": (lambda w, lam: torch.sqrt(w - 3 * lam).sum(), (1.0, 2.0)),
    "a logarithm of 0": (lambda w, lam: (lam * w * torch.log(w)).sum(), (0.0, 1.0)),
}


@pytest.mark.parametrize(("inner", "start"), UNDEFINED.values(), ids=UNDEFINED)
@pytest.mark.parametrize("engine", [Reverse(), Unrolled(), Forward()], ids=str)
def test_an_objective_that_is_not_defined_is_told_from_a_long_step(inner, start, engine):
    run = checked_run(from_start(inner, start), DESCENT, LAM, steps=4, engine=engine)
    result = value_and_gradient(engine, run).result
    assert (result.code, result.step) == (Code.NOT_DEFINED, 1)
    with pytest.raises(DivergenceError, match="because the gradient of the inner objective is not"):
        hypergradient(from_start(inner, start), DESCENT, LAM, steps=4, engine=engine)


def test_so_is_one_that_is_met_on_the_way():
    """w = 1 - t/10 reaches the root's border at t = 10, in steps that stay as long as the first."""
    problem = from_start(lambda w, lam: w.sum() + 0 * lam * torch.sqrt(w - 0.45).sum(), (1.0,))
    run = checked_run(problem, DESCENT, LAM, steps=20, engine=Reverse())
    result = value_and_gradient(Reverse(), run).result
    assert (result.code, result.step) == (Code.NOT_DEFINED, 7)


@pytest.mark.parametrize("power", [3, 4])
def test_a_step_that_is_too_long_remains_one(power):
    problem = from_start(lambda w, lam: ((w - 9 * lam).abs() ** power).sum(), (0.0, 1.0))
    fast = GradientDescent(step_size=1.0)
    with pytest.raises(DivergenceError, match="lower the inner step size"):
        hypergradient(problem, fast, LAM, steps=60)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_epsilon_that_vanishes_in_half_precision_is_named(dtype):
    """1e-8 is 0 in float16; in bfloat16 it is not, and all is well."""
    problem = from_start(
        lambda w, lam: ((w**2).sum() + torch.tensor(1e-8, dtype=dtype)).sqrt() * lam,
        (0.0, 0.0),
        dtype,
    )
    lam = LAM.to(dtype)
    if dtype is torch.bfloat16:
        hypergradient(problem, DESCENT, lam, steps=2)
    else:
        with pytest.raises(DivergenceError, match="an epsilon that is 0 in this precision"):
            hypergradient(problem, DESCENT, lam, steps=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bounds_make_sense_in_half_precision(dtype):
    """Growth by a factor of 200 is no failure, and 0.3 is not accepted for a gradient's error."""
    problem = Problem(
        inner=lambda w, lam: -0.5 * (w - lam) ** 2, outer=lambda w, lam: w, init=lambda lam: 0 * lam
    )
    lam = torch.tensor(0.01, dtype=dtype)
    doubling = GradientDescent(step_size=1.0)
    grad = hypergradient(problem, doubling, lam, steps=9).grad.item()
    assert grad == pytest.approx(1 - 2**9, rel=0.01)
    with pytest.raises(ValueError, match=r"leaves no digit to a difference: check in float32 or"):
        check_hypergradient(problem, doubling, lam, steps=2)
    begun = Implicit(stationarity=0.1)
    half = shift().problem
    run = checked_run(half, DESCENT, lam * 100, steps=1, engine=begun)
    assert value_and_gradient(begun, run).result.code is Code.NOT_STATIONARY


def test_a_draw_shows_in_half_precision():
    problem = from_start(
        lambda w, lam: ((1 + 0.3 * torch.rand_like(w)) * w).sum() * lam, dtype=torch.bfloat16
    )
    with pytest.raises(ValueError, match="must not draw at random"):
        hypergradient(problem, DESCENT, LAM.bfloat16(), steps=2)


# --- trees ---------------------------------------------------------------------------------------


@dataclass
class Params:
    rate: torch.Tensor


Pair = namedtuple("Pair", ["a", "b"])


@pytest.mark.parametrize(
    ("lam", "words"),
    [
        ({"a": LAM, "bias": None}, r"λ\['bias'\] is a builtins.NoneType.*leave it out, as in"),
        (Params(LAM), r"λ is a .*Params: .*dataclasses.asdict"),
        ({"deep": [Params(LAM)]}, r"λ\['deep'\]\[0\] is a .*Params"),
    ],
    ids=["None", "a dataclass", "within"],
)
def test_trees_of_another_kind_are_named_with_their_remedy(lam, words):
    with pytest.raises(TypeError, match=words):
        hypergradient(shift().problem, DESCENT, lam, steps=1)


def test_none_in_the_start_is_named_too():
    problem = Problem(
        inner=lambda w, lam: (w["a"] * lam) ** 2,
        outer=lambda w, lam: w["a"] ** 2,
        init=lambda lam: {"a": 1.0 * lam, "bias": None},
    )
    with pytest.raises(TypeError, match=r"init\(λ\)\['bias'\] is a NoneType.*leave it out"):
        hypergradient(problem, DESCENT, LAM, steps=1)


def test_a_named_tuple_is_a_tuple():
    lam = Pair(LAM, 2 * LAM)
    problem = Problem(
        inner=lambda w, lam: (w - lam.a) ** 2 * lam.b,
        outer=lambda w, lam: w**2,
        init=lambda lam: 0 * lam.a,
    )
    found = hypergradient(problem, DESCENT, lam, steps=2).grad
    assert isinstance(found, Pair)
    at = Pair(*(leaf.clone().requires_grad_() for leaf in lam))
    outer_objective(problem, DESCENT, at, steps=2).backward()
    torch.testing.assert_close(at.b.grad, found.b)


def test_rates_that_do_not_fit_w_are_named():
    problem = Problem(
        inner=lambda w, lam: lam * (w["a"] ** 2 + w["b"] ** 2),
        outer=lambda w, lam: w["a"] ** 2,
        init=lambda lam: {"a": 1.0 * lam, "b": 2.0 * lam},
    )
    lacking = GradientDescent(step_size=lambda lam, t: {"a": 0.1, "c": 0.2})
    with pytest.raises(ValueError, match=r"nothing for w\['b'\] and with w\['c'\] that w does not"):
        hypergradient(problem, lacking, LAM, steps=1)


def test_frozen_parameters_are_refused_wherever_they_would_move():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    net.double()[0].requires_grad_(False)
    x = torch.ones(2, 3, dtype=torch.float64)

    def loss(w, lam):
        return (torch.func.functional_call(net, w, (x,)) ** 2).mean() * lam

    every = Problem(inner=loss, outer=loss, init=lambda lam: dict(net.named_parameters()))
    words = r"\['0.weight'\] is a frozen parameter .*leave it out, as in"
    with pytest.raises(ValueError, match=r"init\(λ\)" + words):
        hypergradient(every, DESCENT, LAM, steps=2)
    with pytest.raises(ValueError, match="λ" + words):
        solve_inner(every, DESCENT, dict(net.named_parameters()), steps=2)
    before = net[0].weight.clone()
    some = Problem(
        inner=loss,
        outer=loss,
        init=lambda lam: {n: p for n, p in net.named_parameters() if p.requires_grad},
    )
    hypergradient(some, DESCENT, LAM, steps=2)
    assert torch.equal(net[0].weight, before)


# --- optimisers of other libraries ---------------------------------------------------------------


@needs_jax
@pytest.mark.parametrize("engine", [Reverse(), Checkpointed(), Forward(), Unrolled()], ids=str)
def test_optax_is_a_dynamics_in_one_call(engine):
    """Adam with ε within the root is ours, counter and schedule included."""
    import optax

    known = ridge()
    rule = optax.adam(0.05, b1=0.8, b2=0.9, eps=0.0, eps_root=1e-6)
    ours = Adam(step_size=0.05, beta1=0.8, beta2=0.9, epsilon=1e-3)
    expected = hypergradient(known.problem, ours, known.lam, steps=5)
    found = hypergradient(
        known.on(JAX), Transformation(rule), JAX.arrays(known.lam), steps=5, engine=engine
    )
    np.testing.assert_allclose(found.grad, expected.grad, rtol=1e-9)


@needs_jax
def test_an_optax_rule_may_depend_on_lam():
    import optax

    known = shift()
    problem = Problem(
        inner=lambda w, lam: 0.5 * (w - 1.7) ** 2,
        outer=known.problem.outer,
        init=lambda lam: 0 * lam,
    )
    learned = Transformation(lambda lam: optax.sgd(lam))
    rate = JAX.arrays(torch.tensor(0.3))
    found = jax.jit(jax.grad(lambda rate: outer_objective(problem, learned, rate, steps=4)))(rate)
    q = 1 - float(rate)
    assert float(found) == pytest.approx(1.7**2 * (1 - q**4) * 4 * q**3, rel=1e-9)


def test_torchopt_is_a_dynamics_in_one_call():
    torchopt = pytest.importorskip("torchopt")
    known = ridge()
    rule = Transformation(torchopt.sgd(lr=0.05, momentum=0.5))
    found = [
        hypergradient(known.problem, rule, known.lam, steps=5, engine=engine).grad
        for engine in (Reverse(), Unrolled(), Checkpointed(budget=1))
    ]
    from bilevel_core import HeavyBall

    ours = HeavyBall(step_size=0.05, momentum=0.5)
    expected = hypergradient(known.problem, ours, known.lam, steps=5).grad
    for grad in found:
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-13)


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match="rule is a float, which has no init and update"):
        Transformation(0.1)


class LineSearch:
    """A step that shrinks its rate while L would not fall: it asks for the value of L too."""

    def init(self, w, lam):
        return {"w": w, "seen": 0 * w.sum()}

    def step(self, gradient, state, lam, t):
        value, slope = gradient.with_value(state["w"])
        return {"w": state["w"] - 0.1 * value * slope, "seen": state["seen"] + value}

    def params(self, state):
        return state["w"]


@pytest.mark.parametrize("engine", [Reverse(), Unrolled(), Forward()], ids=str)
def test_a_step_may_ask_for_the_value_beside_the_gradient(engine):
    known = ridge()

    def value(lam):
        w = 0.1 * lam
        for _ in range(3):
            loss = known.problem.inner(w, lam)
            (g,) = torch.autograd.grad(loss, w, create_graph=True)
            w = w - 0.1 * loss * g
        return known.problem.outer(w, lam)

    lam = known.lam.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(lam), lam)
    found = hypergradient(known.problem, LineSearch(), known.lam, steps=3, engine=engine).grad
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# --- warm starts ---------------------------------------------------------------------------------


@each_framework
def test_a_warm_start_begins_where_the_last_run_ended(framework):
    """On ½(w - λ)² with λ held, each hyper-iteration of T steps goes on with the run before."""
    known, count, steps = shift(), 3, 2
    optax = pytest.importorskip("optax") if framework is JAX else None
    still = (lambda p: torch.optim.SGD(p, lr=0.0)) if framework is TORCH else optax.sgd(0.0)
    run = minimize(
        known.on(framework),
        GradientDescent(step_size=0.25),
        framework.arrays(known.lam),
        steps=steps,
        outer_steps=count,
        optimizer=still,
        warm_start=True,
    )
    expected = [0.5 * (1.7 * (1 - 0.75 ** (steps * k))) ** 2 for k in range(1, count + 1)]
    np.testing.assert_allclose(run.values, expected, rtol=1e-12)


class Products:
    """A solver that counts its products."""

    def __init__(self, solver):
        self.solver, self.counts = solver, []

    def __call__(self, product, b, backend, *, symmetric, guess=None):
        self.counts.append(0)

        def counted(v):
            self.counts[-1] += 1
            return product(v)

        return self.solver(counted, b, backend, symmetric=symmetric, guess=guess)


def test_the_linear_system_begins_at_its_last_solution():
    from bilevel_core import ConjugateGradient, FixedPoint, Neumann

    known = ridge()
    for solver in (
        ConjugateGradient(tolerance=1e-8),
        FixedPoint(step_size=0.1, tolerance=1e-8, steps=5000),
    ):
        counting = Products(solver)
        minimize(
            known.problem,
            GradientDescent(step_size=known.eta),
            known.lam,
            steps=400,
            outer_steps=3,
            optimizer=lambda p: torch.optim.SGD(p, lr=1e-9),
            engine=Implicit(solver=counting),
            warm_start=True,
        )
        assert counting.counts[2] <= 0.6 * counting.counts[0]
    b, guess = torch.ones(2, dtype=torch.float64), torch.full((2,), 0.4, dtype=torch.float64)
    x = Neumann(steps=60, step_size=0.5)(lambda v: 2 * v, b, None, symmetric=True, guess=guess)
    torch.testing.assert_close(x, 0.5 * b)
