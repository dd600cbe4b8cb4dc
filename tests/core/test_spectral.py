"""The spectral engine: the reverse engine's numbers on quadratics, whatever T and the spectrum."""

import dataclasses
from fractions import Fraction
from functools import partial

import pytest
import torch

from bilevel_core import (
    Adam,
    Custom,
    DivergenceError,
    GradientDescent,
    HeavyBall,
    Nesterov,
    Problem,
    ProjectedGradient,
    Reverse,
    Spectral,
    hypergradient,
    minimize,
    solve_inner,
)
from bilevel_core.backends.torch import TorchBackend
from bilevel_core.engines.shared.linear_system import differences, linear_system, response
from frameworks import JAX, TORCH, Framework, crossed, each_framework, jax, needs_jax
from problems import ALL, ridge, shift

DESCENT = GradientDescent(step_size=0.1)
DYNAMICS = {
    "descent": GradientDescent(step_size=lambda lam, t: lam["eta"]),
    "heavy ball": HeavyBall(step_size=lambda lam, t: lam["eta"], momentum=lambda lam, t: lam["mu"]),
    "nesterov": Nesterov(step_size=lambda lam, t: lam["eta"], momentum=lambda lam, t: lam["mu"]),
}
# Hessians A(x) of three weights, with x of norm about one: by what can go wrong in an eigenbasis.
HESSIANS = {
    "coinciding": lambda xp, x, one: (1 + x @ x) * one,
    "nearly coinciding": lambda xp, x, one: one + 1e-9 * xp.outer(x, x),
    "singular": lambda xp, x, one: xp.outer(x, x),
    "nearly singular": lambda xp, x, one: xp.outer(x, x) + 1e-6 * one,
    "flat": lambda xp, x, one: 0 * xp.outer(x, x),
    "indefinite": lambda xp, x, one: xp.outer(x, x) - 0.02 * one,
}
each_hessian = pytest.mark.parametrize("hessian", HESSIANS)
each_dynamics = pytest.mark.parametrize("name", DYNAMICS)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def close(found, expected, relative=1e-10):
    scale = torch.linalg.vector_norm(expected)
    assert torch.linalg.vector_norm(found - expected) <= relative * scale + 1e-14


def right(x):
    return 0.5 * x + x * x


def quadratic(hessian, framework: Framework) -> Problem:
    """L = ½ wᵀ A(x) w - ⟨b(x), w⟩ with a w_0(x), and an E that depends on x as well."""
    xp, make = framework.xp, HESSIANS[hessian]
    one = framework.arrays(torch.eye(3))

    return Problem(
        inner=lambda w, lam: 0.5 * w @ (make(xp, lam["x"], one) @ w) - right(lam["x"]) @ w,
        outer=lambda w, lam: ((w - 0.7) ** 2).sum() + 0.1 * (lam["x"] * w).sum(),
        init=lambda lam: 0.3 * lam["x"],
    )


def hyper(name):
    lam = {"x": tensor(0.6, -0.3, 0.8), "eta": torch.tensor(0.3, dtype=torch.float64)}
    return lam if name == "descent" else lam | {"mu": torch.tensor(0.4, dtype=torch.float64)}


def by_powers(hessian, name, lam, steps):
    """Return w_T by the power of the map (w_t, v_t or w_{t-1}, 1) ↦ the next, block by block."""
    x, eta, mu = lam["x"], lam["eta"], lam.get("mu", torch.zeros((), dtype=torch.float64))
    one, b = torch.eye(3, dtype=torch.float64), right(lam["x"])[:, None]
    a = HESSIANS[hessian](torch, x, one)
    w_0, last = 0.3 * x, torch.cat((torch.zeros(1, 6), torch.ones(1, 1)), 1).double()
    if name == "nesterov":
        kept = one - eta * a
        first, second = [(1 + mu) * kept, -mu * kept, eta * b], [one, 0 * one, 0 * b]
        start = torch.cat((w_0, w_0, tensor(1.0)))
    else:
        first, second = [one - eta * a, -eta * mu * one, eta * b], [a, mu * one, -b]
        start = torch.cat((w_0, 0 * w_0, tensor(1.0)))
    matrix = torch.cat((torch.cat(first, 1), torch.cat(second, 1), last))
    return (torch.linalg.matrix_power(matrix, steps) @ start)[:3]


@pytest.mark.parametrize(
    ("steps", "hessian", "name", "framework"),
    crossed(
        [0, 1, 2, 3, 8, 50],
        HESSIANS,
        DYNAMICS,
        on_jax=[([8], HESSIANS, ["nesterov"]), ([0, 8], ["singular"], DYNAMICS)],
    ),
    ids=str,
)
def test_the_numbers_are_those_of_the_reverse_engine(steps, hessian, name, framework: Framework):
    lam, dynamics = hyper(name), DYNAMICS[name]
    expected = hypergradient(quadratic(hessian, TORCH), dynamics, lam, steps=steps)
    found = hypergradient(
        quadratic(hessian, framework),
        dynamics,
        framework.arrays(lam),
        steps=steps,
        engine=Spectral(),
    )
    close(framework.tensors(found.value), expected.value)
    for key in lam:
        close(framework.tensors(found.grad[key]), expected.grad[key])
    state, reference = framework.tensors(found.state), expected.state
    for key in state if isinstance(state, dict) else ():
        close(state[key], reference[key])


@each_dynamics
@pytest.mark.parametrize("hessian", [name for name in HESSIANS if name != "indefinite"])
def test_a_million_steps_are_a_power_of_the_map(hessian, name):
    lam, problem = hyper(name), quadratic(hessian, TORCH)
    found = hypergradient(problem, DYNAMICS[name], lam, steps=10**6, engine=Spectral())
    lam = {key: leaf.clone().requires_grad_() for key, leaf in lam.items()}
    value = problem.outer(by_powers(hessian, name, lam, 10**6), lam)
    close(found.value, value.detach(), 1e-9)
    for key, grad in zip(lam, torch.autograd.grad(value, tuple(lam.values())), strict=True):
        close(found.grad[key], grad, 1e-8)


@pytest.mark.parametrize("known", ALL, ids=lambda k: f"{k.name}-{k.lam.numel()}")
@pytest.mark.parametrize("steps", [10**3, 10**6])
def test_long_runs_are_those_of_the_closed_form(known, steps):
    found = hypergradient(
        known.problem,
        GradientDescent(step_size=known.eta),
        known.lam,
        steps=steps,
        engine=Spectral(),
    )
    lam = known.lam.clone().requires_grad_()
    value = known.value(lam, known.eta, steps)
    close(found.value, value.detach())
    close(found.grad, torch.autograd.grad(value, lam)[0])


@each_dynamics
@pytest.mark.parametrize("hessian", ["coinciding", "singular"])
def test_the_derivative_of_a_long_run_is_that_of_differences(hessian, name):
    lam, problem, steps, size = hyper(name), quadratic(hessian, TORCH), 3000, 1e-6
    run = partial(hypergradient, problem, DYNAMICS[name], steps=steps, engine=Spectral())
    grad = run(lam).grad
    for key, leaf in lam.items():
        along = torch.ones_like(leaf)
        ends = [run(lam | {key: leaf + sign * size * along}).value for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * size)
        assert torch.allclose((grad[key] * along).sum(), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [HeavyBall, Nesterov])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
def test_divided_differences_are_those_of_exact_arithmetic(steps, make):
    eta, mu, nodes = Fraction(1, 4), Fraction(1, 2), (Fraction(1), Fraction(5, 2), Fraction(-1, 2))

    def descended(a):
        """s_T(a) by steps from 0 on a coordinate whose gradient is 1 + a w."""
        w, other = Fraction(0), Fraction(0)
        for _ in range(steps):
            if make is HeavyBall:
                other = mu * other + 1 + a * w
                w = w - eta * other
            else:
                ahead = w + mu * (w - other)
                w, other = ahead - eta * (1 + a * ahead), w
        return w

    a = tensor(*map(float, nodes))
    system = linear_system(make(step_size=0.25, momentum=0.5), a, a, TorchBackend())
    exact = [descended(node) for node in nodes]
    assert response(system, a, steps)[1][0].tolist() == pytest.approx([float(s) for s in exact])
    found = differences(system, a, steps)[0]
    tiny = Fraction(1, 10**12)
    for i, node in enumerate(nodes):
        for j, other in enumerate(nodes):
            if i == j:
                expected = (descended(node + tiny) - descended(node - tiny)) / (2 * tiny)
            else:
                expected = (exact[i] - exact[j]) / (node - other)
            assert found[i, j].item() == pytest.approx(float(expected), rel=1e-12, abs=1e-14)


def tree_problem(framework: Framework) -> Problem:
    """Weights in two leaves, {"b": (2, 1), "a": [()]}: not in the order of their names."""
    xp = framework.xp
    rows = framework.arrays(tensor(2.0, 0.5, -1.0, 0.3))

    def join(w):
        return xp.concatenate([w["b"].reshape(-1), w["a"][0].reshape(-1)])

    return Problem(
        inner=lambda w, lam: 0.5 * (rows[:3] @ join(w) - 1) ** 2 + lam @ join(w) ** 2,
        outer=lambda w, lam: ((join(w) - rows[1:]) ** 2).sum(),
        init=lambda lam: {"b": lam[:2].reshape(2, 1), "a": [0.5 * lam[2]]},
    )


@each_framework
def test_parameters_in_a_tree(framework: Framework):
    lam, dynamics = tensor(0.3, 0.2, 0.7), HeavyBall(step_size=0.1, momentum=0.3)
    run = partial(hypergradient, dynamics=dynamics, steps=20)
    expected = run(tree_problem(TORCH), lam=lam)
    problem = tree_problem(framework)
    found = run(problem, lam=framework.arrays(lam), engine=Spectral())
    close(framework.tensors(found.grad), expected.grad)
    for part in ("w", "velocity"):
        close(framework.tensors(found.state[part]["b"]), expected.state[part]["b"])
        close(framework.tensors(found.state[part]["a"][0]), expected.state[part]["a"][0])


def test_leaves_of_several_sizes():
    rows = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)

    def join(w):
        return torch.cat([w["a"], w["b"].reshape(1), w["c"][0].reshape(-1)])

    problem = Problem(
        inner=lambda w, lam: ((rows @ join(w) - 1) ** 2).sum() / 2 + lam @ join(w) ** 2,
        outer=lambda w, lam: ((join(w) - 0.3) ** 2).sum(),
        init=lambda lam: {"a": 0.5 * lam[:2], "b": lam[2], "c": [lam[3:].reshape(3, 1)]},
    )
    lam = tensor(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    found, expected = (
        hypergradient(problem, DESCENT, lam, steps=9, engine=engine)
        for engine in (Spectral(), Reverse())
    )
    close(found.value, expected.value)
    close(found.grad, expected.grad)
    close(join(found.state), join(expected.state))


def test_an_objective_that_is_zero_is_quadratic():
    still = Problem(
        inner=lambda w, lam: 0 * (w * lam).sum(),
        outer=lambda w, lam: ((w - lam) ** 2).sum(),
        init=torch.zeros_like,
    )
    lam = tensor(1.0, -2.0)
    assert torch.equal(grad_of(still)(lam), 2 * lam)


def test_hyperparameters_may_be_zero():
    known = ridge()
    found, expected = (
        hypergradient(known.problem, DESCENT, 0 * known.lam, steps=5, engine=engine)
        for engine in (Spectral(), Reverse())
    )
    close(found.grad, expected.grad)


@pytest.mark.parametrize("steps", [0, 6])
def test_as_many_derivatives_are_taken_as_the_kernel_has_rank(steps):
    """Weights apart, of which one alone moves: Γ has a single entry, or none where T = 0."""
    calls, size = [], 40

    def inner(w, lam):
        calls.append(0)
        return (lam * w**2).sum() / 2 - w[3]

    problem = Problem(inner=inner, outer=lambda w, lam: ((w - 1) ** 2).sum(), init=torch.zeros_like)
    lam = torch.linspace(0.5, 1.5, size, dtype=torch.float64)
    expected = hypergradient(problem, DESCENT, lam, steps=steps)
    calls.clear()
    found = hypergradient(problem, DESCENT, lam, steps=steps, engine=Spectral())
    close(found.grad, expected.grad)
    assert len(calls) < 12


def test_the_objective_is_not_evaluated_more_often_for_more_steps():
    known, calls = ridge(), []

    def inner(w, lam):
        calls.append(0)
        return known.problem.inner(w, lam)

    counted = []
    for steps in (100, 10**6):
        calls.clear()
        problem = dataclasses.replace(known.problem, inner=inner)
        hypergradient(problem, DESCENT, known.lam, steps=steps, engine=Spectral())
        counted.append(len(calls))
    assert counted[1] <= counted[0] <= len(known.lam) + 10


def test_it_serves_the_outer_loop():
    known = ridge()
    runs = [
        minimize(
            known.problem,
            DESCENT,
            known.lam,
            steps=30,
            outer_steps=5,
            optimizer=partial(torch.optim.SGD, lr=0.1),
            engine=engine,
        )
        for engine in (Reverse(), Spectral())
    ]
    close(runs[1].lam, runs[0].lam)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_scale_of_the_objective_does_not_matter(scale):
    known = ridge()
    scaled = dataclasses.replace(
        known.problem, inner=lambda w, lam: scale * known.problem.inner(w, lam)
    )
    descent = GradientDescent(step_size=0.1 / scale)
    grads = [
        hypergradient(problem, dynamics, known.lam, steps=40, engine=Spectral()).grad
        for problem, dynamics in ((scaled, descent), (known.problem, DESCENT))
    ]
    close(*grads)


def test_single_precision_stays_single():
    known, single = ridge(), ridge().lam.float()
    data = [leaf.float() for leaf in (torch.linspace(0.1, 1, 5), torch.linspace(-1, 1, 5))]
    problem = Problem(
        inner=lambda w, lam: (data[0] * (w - lam) ** 2).sum() + (data[1] @ w) ** 2,
        outer=lambda w, lam: (w**2).sum(),
        init=torch.zeros_like,
    )
    eta = torch.tensor(known.eta, dtype=torch.float64)
    descent = GradientDescent(step_size=lambda lam, t: eta)
    found, expected = (
        hypergradient(problem, descent, single, steps=30, engine=engine)
        for engine in (Spectral(), Reverse())
    )
    assert found.grad.dtype == found.state.dtype == torch.float32
    assert torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [100, 10**6])
def test_a_run_that_diverges_is_reported_with_the_step(steps):
    fast = GradientDescent(step_size=3.0)  # |1 - η| = 2: the error doubles at each step
    with pytest.raises(DivergenceError, match=rf"at step 5[0-9] of T = {steps}: lower the inner"):
        hypergradient(shift().problem, fast, shift().lam, steps=steps, engine=Spectral())
    some = hypergradient(shift().problem, fast, shift().lam, steps=30, engine=Spectral())
    close(some.state, solve_inner(shift().problem, fast, shift().lam, steps=30))


def test_objectives_that_are_not_finite_are_refused():
    inner = dataclasses.replace(shift().problem, inner=lambda w, lam: (w - lam) / (0 * w))
    with pytest.raises(DivergenceError, match="gradient or Hessian is not finite at w_0"):
        hypergradient(inner, DESCENT, shift().lam, steps=3, engine=Spectral())
    outer = dataclasses.replace(shift().problem, outer=lambda w, lam: torch.sqrt(w - w))
    with pytest.raises(DivergenceError, match="the hypergradient is not finite after 3"):
        hypergradient(outer, DESCENT, shift().lam, steps=3, engine=Spectral())


def with_inner(inner):
    return Problem(
        inner=inner, outer=lambda w, lam: (w**2).sum(), init=lambda lam: 0.3 * torch.ones_like(lam)
    )


@pytest.mark.parametrize(
    "inner",
    [
        lambda w, lam: ((w - lam) ** 4).sum(),
        lambda w, lam: torch.nn.functional.huber_loss(w, lam, delta=0.8),
        lambda w, lam: torch.log1p(torch.exp(-w * lam)).sum(),
        # Quadratic along the way of the descent, which leaves the second weight alone.
        lambda w, lam: (w[0] - lam[0]) ** 2 + (w[1] - 0.3) ** 4,
    ],
    ids=["quartic", "huber", "logistic", "aside"],
)
@pytest.mark.parametrize("steps", [1, 10])
def test_an_objective_that_is_not_quadratic_is_refused(steps, inner):
    lam, descent = tensor(1.5, 2.0), GradientDescent(step_size=0.02)
    with pytest.raises(
        ValueError, match=r"Spectral needs .* quadratic in w.*: use Implicit or Rev"
    ):
        hypergradient(with_inner(inner), descent, lam, steps=steps, engine=Spectral())


def test_the_check_looks_as_far_away_as_the_run_goes():
    """A quartic that shows on the scale of the run alone, in a weight that the run leaves alone."""
    far, descent = 1e6, GradientDescent(step_size=0.02)
    problem = with_inner(lambda w, lam: (w[0] - lam[0]) ** 2 + (w[1] - 0.3) ** 4 / far**2)
    with pytest.raises(ValueError, match="quadratic in w"):
        hypergradient(problem, descent, tensor(far, 1.0), steps=10, engine=Spectral())


def test_and_no_farther():
    """Sixteen weights that all go from 0.3 to about 1.5: beyond 20 the objective is linear."""
    problem = with_inner(lambda w, lam: torch.nn.functional.huber_loss(w, lam, delta=20.0))
    lam, descent = torch.full((16,), 1.5, dtype=torch.float64), GradientDescent(step_size=4.0)
    found, expected = (
        hypergradient(problem, descent, lam, steps=10, engine=engine)
        for engine in (Spectral(), Reverse())
    )
    close(found.grad, expected.grad)


@pytest.mark.parametrize(
    ("dynamics", "error", "words"),
    [
        (Adam(step_size=0.1), TypeError, "found Adam: use Reverse"),
        (Custom(update=lambda w, lam, t: 0.9 * w), TypeError, "found Custom"),
        (
            ProjectedGradient(step_size=0.1, projection=lambda w, lam: w),
            TypeError,
            "found ProjectedGradient",
        ),
        (
            GradientDescent(step_size=lambda lam, t: 0.1 / t),
            ValueError,
            r"one step_size for all steps.*looks at the step t: make it .* or use Reverse",
        ),
        (GradientDescent(step_size=lambda lam, t: 0.1 if t == 1 else 0.2), ValueError, "step t"),
        (GradientDescent(step_size=lambda lam, t: [0.1, 0.1, 0.1][t - 1]), ValueError, "step t"),
        (GradientDescent(step_size=lambda lam, t: 0.1 * lam[t - 1]), ValueError, "step t"),
        (GradientDescent(step_size=lambda lam, t: {1: 0.1}.get(t, 0.1)), ValueError, "step t"),
        (GradientDescent(step_size=lambda lam, t: 0.1 if t else 0.2), ValueError, "step t"),
        (GradientDescent(step_size=lambda lam, t: {"1": 0.2}.get(f"{t}")), ValueError, "step t"),
        (
            HeavyBall(step_size=0.1, momentum=lambda lam, t: 1 - 2 / (t + 1)),
            ValueError,
            "one momentum for all steps",
        ),
        (
            GradientDescent(step_size=lambda lam, t: 0.01 * lam.exp()),
            ValueError,
            r"one a parameter, of shape \(5,\)",
        ),
        (
            GradientDescent(step_size=torch.full((5,), 0.1, dtype=torch.float64)),
            ValueError,
            r"one a parameter, of shape \(5,\)",
        ),
    ],
)
def test_dynamics_that_have_no_filter_are_refused(dynamics, error, words):
    known = ridge()
    with pytest.raises(error, match=f"^Spectral .*{words}"):
        hypergradient(known.problem, dynamics, known.lam, steps=3, engine=Spectral())


def test_one_step_size_a_leaf_is_refused():
    problem = Problem(
        inner=lambda w, lam: ((w["a"] - lam) ** 2).sum(),
        outer=lambda w, lam: w["a"].sum(),
        init=lambda lam: {"a": torch.zeros_like(lam)},
    )
    dynamics = GradientDescent(step_size=lambda lam, t: {"a": 0.1})
    with pytest.raises(ValueError, match="found a tree with one a parameter"):
        hypergradient(problem, dynamics, tensor(1.0, 2.0), steps=1, engine=Spectral())


def test_batches_are_refused():
    problem = dataclasses.replace(
        shift().problem, inner=lambda w, lam, batch: (w - lam) ** 2 * batch, batches=lambda t: t
    )
    with pytest.raises(ValueError, match=r"Spectral takes one inner objective.*has batches"):
        hypergradient(problem, DESCENT, shift().lam, steps=2, engine=Spectral())


def grad_of(problem):
    return lambda lam: hypergradient(problem, DESCENT, lam, steps=2, engine=Spectral()).grad


def test_vmap_is_refused():
    with pytest.raises(ValueError, match="λ is traced: call it outside of jit and vmap"):
        torch.func.vmap(grad_of(ridge().problem))(torch.stack([ridge().lam, ridge().lam]))


@needs_jax
def test_jit_is_refused():
    with pytest.raises(ValueError, match="λ is traced: call it outside of jit and vmap"):
        jax.jit(grad_of(ridge().on(JAX)))(JAX.arrays(ridge().lam))
