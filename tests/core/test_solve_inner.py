"""w_T(λ) as a function that the framework differentiates, by every engine."""

import doctest
import importlib

import numpy as np
import pytest
import torch
from torch.func import functional_call

from bilevel_core import (
    Checkpointed,
    ConjugateGradient,
    Direct,
    Engine,
    Exact,
    Forward,
    GradientDescent,
    HeavyBall,
    Implicit,
    Neumann,
    Problem,
    Reverse,
    Spectral,
    Truncated,
    Unrolled,
    hypergradient,
    minimize,
    outer_objective,
    solve_inner,
)
from frameworks import JAX, TORCH, Framework, each_framework, jax, needs_jax
from problems import linear_map, ridge, shift

TRACEABLE: list[Engine] = [
    Reverse(),
    Unrolled(),
    Checkpointed(budget=2),
    Truncated(horizon=3),
    Forward(),
    Forward(chunk=2),
    Direct(),
]
LOOKING: list[Engine] = [Spectral(), Implicit(stationarity=None), Exact()]
EVERY = [*TRACEABLE, *LOOKING]
each_engine = pytest.mark.parametrize("engine", EVERY, ids=lambda e: type(e).__name__)


def double(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("known", [shift(), ridge(), linear_map()], ids=lambda k: k.name)
@each_engine
def test_backward_gives_the_hypergradient(engine, known):
    descent = GradientDescent(step_size=known.eta)
    expected = hypergradient(known.problem, descent, known.lam, steps=6, engine=engine)
    lam = torch.nn.Parameter(known.lam.clone())
    value = outer_objective(known.problem, descent, lam, steps=6, engine=engine)
    (3 * value).backward()
    torch.testing.assert_close(value.detach(), expected.value, rtol=1e-13, atol=0)
    torch.testing.assert_close(lam.grad, 3 * expected.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "engine",
    [e for e in EVERY if not isinstance(e, Direct | Implicit | Exact)],
    ids=lambda e: type(e).__name__,
)
def test_no_steps_leave_the_start(engine):
    known = ridge()
    lam = known.lam.clone().requires_grad_()
    w = solve_inner(known.problem, DESCENT, lam, steps=0, engine=engine)
    start = known.problem.init(lam)
    assert torch.equal(w, start)
    grads = [torch.autograd.grad((tree**2).sum(), lam)[0] for tree in (w, start)]
    torch.testing.assert_close(*grads, rtol=1e-13, atol=0)


@needs_jax
@pytest.mark.slow
@each_engine
def test_grad_gives_the_hypergradient(engine):
    known = ridge()
    descent, lam = GradientDescent(step_size=known.eta), JAX.arrays(known.lam)
    expected = hypergradient(known.problem, descent, known.lam, steps=6, engine=engine)

    def value(lam):
        return outer_objective(known.on(JAX), descent, lam, steps=6, engine=engine)

    found = [jax.value_and_grad(value)]
    if engine in TRACEABLE:
        found.append(jax.jit(jax.value_and_grad(value)))
    for run in found:
        np.testing.assert_allclose(run(lam)[0], expected.value, rtol=1e-12)
        np.testing.assert_allclose(run(lam)[1], expected.grad, rtol=1e-9, atol=1e-13)


# λ is a penalty and the data a task: L = ½ Σ (w - aλ)² + ½ λ Σ w², in every framework.
def of_data(framework: Framework) -> Problem:
    return Problem(
        inner=lambda w, lam, a: 0.5 * ((w - a * lam) ** 2).sum() + 0.5 * lam * (w**2).sum(),
        outer=lambda w, lam, a: 0.5 * ((w - a) ** 2).sum() + 0.1 * lam**2,
        init=lambda lam, a: 0.5 * a + lam,
    )


OF_DATA = {framework.name: of_data(framework) for framework in (TORCH, JAX)}


def by_hand(lam, a, steps, eta=0.2):
    w = 0.5 * a + lam
    for _ in range(steps):
        w = w - eta * ((w - a * lam) + lam * w)
    return 0.5 * ((w - a) ** 2).sum() + 0.1 * lam**2


@each_framework
@pytest.mark.parametrize(
    "engine", [Reverse(), Unrolled(), Checkpointed(), Forward(), Spectral()], ids=str
)
def test_data_are_an_argument(engine, framework):
    descent, lam = GradientDescent(step_size=0.2), torch.tensor(0.3, dtype=torch.float64)
    for a in (double(1.0, -2.0), double(0.5, 3.0)):
        found = hypergradient(
            OF_DATA[framework.name],
            descent,
            framework.arrays(lam),
            framework.arrays(a),
            steps=4,
            engine=engine,
        )
        at = lam.clone().requires_grad_()
        value = by_hand(at, a, 4)
        np.testing.assert_allclose(found.value, value.detach(), rtol=1e-12)
        np.testing.assert_allclose(found.grad, torch.autograd.grad(value, at)[0], rtol=1e-10)


def test_data_may_be_anything_that_the_objectives_take():
    problem = Problem(
        inner=lambda w, lam, task: ((w - task["x"]) ** 2).sum() * lam,
        outer=lambda w, lam, task: (w[task["rows"]] ** 2).sum(),
        init=lambda lam, task: torch.zeros(task["size"], dtype=lam.dtype),
    )
    task = {"x": double(1.0, 2.0), "rows": slice(0, 1), "size": 2}
    lam = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    descent = GradientDescent(step_size=0.5)
    outer_objective(problem, descent, lam, task, steps=1).backward()
    assert lam.grad.item() == pytest.approx(2 * 0.5 * 1.0, rel=1e-12)  # w = λ x


@each_framework
@each_engine
def test_a_start_is_differentiated_too(engine, framework):
    """On ½(w - λ)² the derivative of w_T in w_0 is (1-η)^T: 0 for engines of a limit."""
    problem, descent = shift().on(framework), GradientDescent(step_size=0.25)
    lam, start = framework.arrays((double(1.7)[0], double(0.4)[0]))
    if framework is TORCH:
        lam.requires_grad_(), start.requires_grad_()
        w = solve_inner(problem, descent, lam, steps=3, engine=engine, start=start)
        found = torch.autograd.grad(w, (lam, start), allow_unused=True, materialize_grads=True)
    else:
        w, found = jax.value_and_grad(
            lambda lam, start: solve_inner(
                problem, descent, lam, steps=3, engine=engine, start=start
            ),
            argnums=(0, 1),
        )(lam, start)
    q = 0.75**3
    limit = isinstance(engine, Implicit | Exact)
    expected = (1.0, 0.0) if limit else (1 - q, q)
    if isinstance(engine, Direct):
        expected = (0.0, 0.0)
    np.testing.assert_allclose([float(g) for g in found], expected, rtol=1e-12)
    at = 1.7 if isinstance(engine, Exact) else 1.7 + q * (0.4 - 1.7)
    assert w.item() == pytest.approx(at, rel=1e-12)


# --- PyTorch -----------------------------------------------------------------------------------


def regression() -> tuple[torch.nn.Module, Problem, dict]:
    """A hypernetwork's setting: λ is what a module computes, or holds."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    problem = Problem(
        inner=lambda w, lam, d: ((d["x"][:6] @ w - d["y"][:6]) ** 2).mean() + (lam * w**2).sum(),
        outer=lambda w, lam, d: ((d["x"][6:] @ w - d["y"][6:]) ** 2).mean(),
        init=lambda lam, d: torch.zeros_like(lam),
    )
    return torch.nn.Linear(2, 3).double(), problem, {"x": x, "y": y}


DESCENT = GradientDescent(step_size=0.1)


def test_a_hypernetwork_is_trained_by_backward():
    net, problem, data = regression()
    optimizer, values = torch.optim.Adam(net.parameters(), lr=0.05), []
    given = double(0.3, -0.7)
    for _ in range(30):
        optimizer.zero_grad()
        value = outer_objective(problem, DESCENT, net(given).exp(), data, steps=8)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.99 * values[0]
    lam = net(given).exp()
    grad = hypergradient(problem, DESCENT, lam, data, steps=8).grad
    net.zero_grad()
    outer_objective(problem, DESCENT, lam, data, steps=8).backward()
    expected = torch.autograd.grad(net(given).exp(), list(net.parameters()), grad)
    for parameter, product in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, product, rtol=1e-12, atol=1e-15)


def test_parameters_of_a_module_accumulate_gradients():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    net.double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)

    def loss(w, lam, rows):
        return ((functional_call(net, w, (x[rows],)) - y[rows]) ** 2).mean()

    problem = Problem(inner=loss, outer=loss, init=lambda lam, rows: lam)
    tasks, parts = (slice(0, 4), slice(4, 8)), []
    for rows in tasks:  # MAML
        lam = dict(net.named_parameters())
        outer_objective(problem, DESCENT, lam, rows, steps=3).backward()
        parts.append(hypergradient(problem, DESCENT, lam, rows, steps=3).grad)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, parts[0][name] + parts[1][name])


def test_a_grad_scaler_trains_a_module_as_it_would_be_without():
    def trained(enabled: bool) -> list[torch.Tensor]:
        net, problem, data = regression()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for step in range(3):
            optimizer.zero_grad()
            lam = net(double(0.3, -0.7)).exp()
            value = outer_objective(problem, DESCENT, lam, data, steps=4)
            # In the second step a gradient overflows: the step is left out, and the scale halved.
            scaler.scale(value * (float("inf") if enabled and step == 1 else 1.0)).backward()
            if enabled or step != 1:
                scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == (512.0 if enabled else 1.0)
        return list(net.parameters())

    for found, expected in zip(trained(enabled=True), trained(enabled=False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_hooks_see_the_gradient():
    lam = double(0.3).requires_grad_()
    seen = []
    lam.register_hook(lambda g: seen.append(g.clone()))
    outer_objective(OF_DATA["torch"], DESCENT, lam.sum(), double(1.0), steps=2).backward()
    assert torch.equal(seen[0], lam.grad)


def test_one_graph_serves_several_passes_where_it_is_retained():
    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value = outer_objective(OF_DATA["torch"], DESCENT, lam, double(1.0), steps=2)
    first = torch.autograd.grad(value, lam, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(value, lam)[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, lam)


def test_writing_into_lam_before_the_way_back_is_noticed():
    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value = outer_objective(OF_DATA["torch"], DESCENT, lam, double(1.0), steps=2)
    with torch.no_grad():
        lam.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_writing_into_the_solution_harms_nothing():
    lam = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    w = solve_inner(shift().problem, GradientDescent(step_size=0.25), lam, steps=3)
    with torch.no_grad():
        w.mul_(100.0)
    w.backward()
    assert lam.grad.item() == pytest.approx(1 - 0.75**3, rel=1e-12)


def test_a_state_with_a_velocity():
    known, dynamics = ridge(), HeavyBall(step_size=0.05, momentum=0.5)
    lam = known.lam.clone().requires_grad_()
    grads = [
        torch.autograd.grad(
            outer_objective(known.problem, dynamics, lam, steps=7, engine=engine), lam
        )[0]
        for engine in (Unrolled(), Reverse(), Checkpointed(budget=2), Forward(), Spectral())
    ]
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-10, atol=1e-13)


def test_unrolled_is_differentiated_as_often_as_one_likes():
    """f = ½λ²q², so f' = λq², f'' = q², and the third derivative of ½ f² is 3 λ q⁴."""
    lam = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    q = 1 - 0.75**3
    f = outer_objective(
        shift().problem, GradientDescent(step_size=0.25), lam, steps=3, engine=Unrolled()
    )
    for expected in (q**4 * 1.7**3 / 2, q**4 * 3 * 1.7**2 / 2, q**4 * 3 * 1.7):
        f = 0.5 * f**2 if expected == q**4 * 1.7**3 / 2 else f
        (f,) = torch.autograd.grad(f, lam, create_graph=True)
        assert f.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "engine",
    [e for e in EVERY if not isinstance(e, Unrolled)],
    ids=lambda e: type(e).__name__,
)
def test_the_others_refuse_a_second_derivative(engine):
    known = ridge()
    lam = known.lam.clone().requires_grad_()
    w = solve_inner(known.problem, DESCENT, lam, steps=3, engine=engine)
    (grad,) = torch.autograd.grad((w**2).sum(), lam, create_graph=True)
    with pytest.raises(RuntimeError, match="once more: take engine=Unrolled"):
        torch.autograd.grad(grad.sum(), lam)


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("second", ["reverse", "forward"])
def test_in_jax_too(second):
    known = shift()
    lam = JAX.arrays(known.lam)

    def value(engine):
        return lambda lam: outer_objective(
            known.on(JAX), GradientDescent(step_size=0.25), lam, steps=3, engine=engine
        )

    outermost = jax.jacrev if second == "reverse" else jax.jacfwd
    q = 1 - 0.75**3
    found = outermost(jax.grad(value(Unrolled())))(lam)
    assert float(found) == pytest.approx(q**2, rel=1e-12)
    for engine in (Reverse(), Forward(), Checkpointed()):
        with pytest.raises(TypeError, match="once more: take engine=Unrolled"):
            outermost(jax.grad(value(engine)))(lam)


def test_a_captured_tensor_whose_derivative_would_be_lost_is_refused():
    weight = torch.nn.Parameter(double(1.0, 2.0))
    problem = Problem(
        inner=lambda w, lam: ((w - lam * weight) ** 2).sum(),
        outer=lambda w, lam: (w**2).sum(),
        init=torch.zeros_like,
    )
    lam = double(0.5, 0.5).requires_grad_()
    with pytest.raises(ValueError, match="its derivative would be lost: put it into λ"):
        solve_inner(problem, DESCENT, lam, steps=2)
    outer_objective(problem, DESCENT, lam, steps=2, engine=Unrolled()).backward()
    assert weight.grad.norm() > 0
    with torch.no_grad():
        solve_inner(problem, DESCENT, lam, steps=2)  # numbers alone


TRANSFORMABLE = [*TRACEABLE, Implicit(stationarity=None)]


@pytest.mark.parametrize("engine", TRANSFORMABLE, ids=str)
def test_transforms_of_torch_go_around_it(engine):
    """`grad`, `vmap` over λ, over the data, and autograd around it: each as it is by itself."""
    _, problem, data = regression()
    rates = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    lams = rates[:, None] * double(1.0, 0.5, 2.0)
    tasks = {name: torch.stack([leaf, leaf.flip(0), 2 * leaf]) for name, leaf in data.items()}

    def value(lam, task):
        return outer_objective(problem, DESCENT, lam, task, steps=4, engine=engine)

    def alone(lam, j):
        task = {name: leaf[j] for name, leaf in tasks.items()}
        return hypergradient(problem, DESCENT, lam, task, steps=4, engine=engine).grad

    def same(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    grad, rows = torch.func.grad(value), range(3)
    same(grad(lams[0], data), alone(lams[0], 0))
    each = torch.func.vmap(grad)(lams, tasks)
    same(each, torch.stack([alone(lams[j], j) for j in rows]))
    lam = lams[0].clone().requires_grad_()
    torch.func.vmap(value, in_dims=(None, 0))(lam, tasks).sum().backward()
    same(lam.grad, sum(alone(lams[0], j) for j in rows))


def test_a_second_derivative_is_refused_within_transforms_too():
    known = linear_map()
    problem = known.problem

    def total(lam):  # the cotangent of w_T is a constant: what depends on λ is the way back alone
        return solve_inner(problem, DESCENT, lam, steps=3).sum()

    with pytest.raises(RuntimeError, match="take engine=Unrolled"):
        torch.func.jacrev(torch.func.grad(total))(known.lam)
    lam = known.lam.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(lam), lam, create_graph=True)
    with pytest.raises(RuntimeError, match="take engine=Unrolled"):
        slope.sum().backward()


def test_the_implicit_engine_says_on_the_way_back_that_it_cannot():
    from bilevel_core import ConvergenceError

    lam = shift().lam.clone().requires_grad_()
    w = solve_inner(shift().problem, DESCENT, lam, steps=1, engine=Implicit())
    with pytest.raises(ConvergenceError, match="not a stationary point"):
        w.backward()


def test_autocast_holds_on_the_way_back():
    """A step that is run again is the step that was: bfloat16 matrix products."""
    _, problem, data = regression()
    data = {name: leaf.float() for name, leaf in data.items()}
    lam = torch.full((3,), 0.1)
    grads = []
    for engine in (Reverse(), Unrolled()):
        at = lam.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = outer_objective(problem, DESCENT, at, data, steps=3, engine=engine)
        value.backward()
        grads.append(at.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-2, atol=1e-3)


# --- JAX ---------------------------------------------------------------------------------------


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("engine", TRACEABLE, ids=str)
def test_jit_vmap_and_scan_go_around_it(engine):
    tasks = JAX.arrays(torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 2.0]], dtype=torch.float64))
    descent, lam = GradientDescent(step_size=0.2), JAX.arrays(torch.tensor(0.3))

    def grad(lam, a):
        return jax.grad(
            lambda lam: outer_objective(OF_DATA["jax"], descent, lam, a, steps=4, engine=engine)
        )(lam)

    one_by_one = [
        hypergradient(OF_DATA["jax"], descent, lam, a, steps=4, engine=engine).grad for a in tasks
    ]
    together = jax.jit(jax.vmap(grad, in_axes=(None, 0)))(lam, tasks)
    np.testing.assert_allclose(together, np.stack(one_by_one), rtol=1e-10)
    in_turn = jax.lax.scan(lambda carry, a: (carry, grad(lam, a)), 0.0, tasks)[1]
    np.testing.assert_allclose(in_turn, np.stack(one_by_one), rtol=1e-10)


@needs_jax
@pytest.mark.parametrize("solver", [ConjugateGradient(), Neumann(steps=9, step_size=0.1)], ids=str)
def test_the_implicit_engine_within_jit(solver):
    """It takes all the steps of its solver there, and checks nothing."""
    known, problem = ridge(), ridge().on(JAX)
    descent, engine = GradientDescent(step_size=known.eta), Implicit(solver=solver, tolerance=None)
    expected = hypergradient(known.problem, descent, known.lam, steps=400, engine=engine).grad

    def value(lam):
        return outer_objective(problem, descent, lam, steps=400, engine=engine)

    found = jax.jit(jax.vmap(jax.grad(value)))(JAX.arrays(known.lam[None]))
    np.testing.assert_allclose(found[0], expected, rtol=1e-8)


@needs_jax
def test_data_that_are_differentiated_are_refused():
    descent, lam = GradientDescent(step_size=0.2), JAX.arrays(torch.tensor(0.3))
    a = JAX.arrays(double(1.0, -2.0))

    def value(lam, a):
        return outer_objective(OF_DATA["jax"], descent, lam, a, steps=4)

    with pytest.raises(ValueError, match="the data are differentiated"):
        jax.grad(value, argnums=1)(lam, a)


@needs_jax
@pytest.mark.slow
def test_an_outer_run_of_a_thousand_hyper_iterations_is_one_program():
    import optax

    descent, adam = GradientDescent(step_size=0.2), optax.adam(0.01)
    a, start = JAX.arrays(double(1.0, -2.0)), JAX.arrays(torch.tensor(0.3))
    traced = []

    def step(carry, _):
        traced.append(1)
        lam, memory = carry
        value, grad = jax.value_and_grad(
            lambda lam: outer_objective(OF_DATA["jax"], descent, lam, a, steps=5)
        )(lam)
        updates, memory = adam.update(grad, memory, lam)
        return (optax.apply_updates(lam, updates), memory), value

    @jax.jit
    def run(lam):
        return jax.lax.scan(step, (lam, adam.init(lam)), None, length=1000)

    (lam, _), values = run(start)
    assert len(traced) <= 2
    few = minimize(OF_DATA["jax"], descent, start, a, steps=5, outer_steps=20, optimizer=adam)
    np.testing.assert_allclose(values[:20], few.values, rtol=1e-10)
    assert float(abs(hypergradient(OF_DATA["jax"], descent, lam, a, steps=5).grad)) < 1e-6


def test_docstring_examples():
    # The package exports a function of the same name as the module.
    module = importlib.import_module("bilevel_core.solve_inner")
    assert doctest.testmod(module, extraglobs={"Problem": Problem}).failed == 0
