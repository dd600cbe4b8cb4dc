"""One table that tells five methods apart: the optimum in θ of two quadratic tasks.

L_i(w) = E_i(w) = ½ h_i (w - a_i)² with h = (1, 4), a = (0, 1), η = 0.2, T = 2, ρ = 2. The outer
gradient is linear in θ, so two of them give its zero. Any slip of a sign, a power or a detach moves
the number.
"""

import numpy as np
import pytest
import torch

from bilevel_core import (
    Checkpointed,
    Dense,
    Direct,
    DivergenceError,
    Exact,
    FirstOrder,
    Forward,
    GradientDescent,
    Implicit,
    Problem,
    Reverse,
    Spectral,
    Truncated,
    Unrolled,
    along_trajectory,
    hypergradient,
    mean_objective,
    minimize,
    outer_objective,
    over_tasks,
    solve_inner,
)
from frameworks import TORCH, Framework, each_framework, jax

ETA, RHO, STEPS = 0.2, 2.0, 2
H, A = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
DESCENT = GradientDescent(step_size=ETA)


def quadratic(proximal: bool = False) -> Problem:
    """One task, whose data are (h, a); θ is where w starts."""

    def loss(w, theta, task):
        return 0.5 * task["h"] * (w - task["a"]) ** 2

    def near(w, theta, task):
        return loss(w, theta, task) + 0.5 * RHO * (w - theta) ** 2

    return Problem(
        inner=near if proximal else loss, outer=loss, init=lambda theta, task: 1.0 * theta
    )


PLAIN, PROXIMAL = quadratic(), quadratic(proximal=True)
TASKS = {"h": H, "a": A}


def task(framework: Framework, i: int):
    return framework.arrays({"h": H[i], "a": A[i]})


def zero_of(slope) -> float:
    """Return the zero of a linear function."""
    at_zero, at_one = slope(0.0), slope(1.0)
    return float(at_zero / (at_zero - at_one))


def optimum(framework, problem, dynamics, engine, steps=STEPS) -> float:
    """Return the θ at which the hypergradients of both tasks add up to nothing."""

    def slope(theta):
        theta = framework.arrays(torch.tensor(theta, dtype=torch.float64))
        return sum(
            float(
                hypergradient(
                    problem, dynamics, theta, task(framework, i), steps=steps, engine=engine
                ).grad
            )
            for i in range(2)
        )

    return zero_of(slope)


OF_THE_RUN = [Reverse(), Unrolled(), Checkpointed(), Truncated(horizon=2), Forward(), Spectral()]
OF_THE_LIMIT = [Implicit(), Implicit(solver=Dense()), Exact()]


@each_framework
@pytest.mark.parametrize("engine", OF_THE_RUN, ids=str)
def test_maml(engine, framework):
    assert optimum(framework, PLAIN, DESCENT, engine) == pytest.approx(0.0153846154, abs=1e-9)


@each_framework
@pytest.mark.parametrize("engine", [e for e in OF_THE_RUN if e != Spectral()], ids=str)
def test_first_order_maml(engine, framework):
    found = optimum(framework, PLAIN, FirstOrder(DESCENT), engine)
    assert found == pytest.approx(0.2, abs=1e-10)


@each_framework
@pytest.mark.parametrize("engine", OF_THE_LIMIT, ids=lambda e: type(e).__name__)
def test_implicit_maml(engine, framework):
    found = optimum(framework, PROXIMAL, DESCENT, engine, steps=300)
    assert found == pytest.approx(0.5, abs=1e-9)


@each_framework
@pytest.mark.parametrize("engine", [Reverse(), Forward(), Unrolled()], ids=str)
def test_joint_training(engine, framework):
    assert optimum(framework, PLAIN, DESCENT, engine, steps=0) == pytest.approx(0.8, abs=1e-10)


@each_framework
def test_reptile(framework):
    def slope(theta):
        at = framework.arrays(torch.tensor(theta, dtype=torch.float64))
        return sum(
            theta - float(solve_inner(PLAIN, DESCENT, at, task(framework, i), steps=STEPS))
            for i in range(2)
        )

    assert zero_of(slope) == pytest.approx(8 / 11, abs=1e-10)


def test_engines_of_the_limit_and_direct_see_nothing_of_a_start():
    theta = torch.tensor(0.3, dtype=torch.float64)
    for engine in (Direct(), Truncated(horizon=1)):
        found = hypergradient(PLAIN, DESCENT, theta, task(TORCH, 0), steps=STEPS, engine=engine)
        assert found.grad == 0


V = (0.3, 0.7)
ALONG = along_trajectory(PLAIN, DESCENT, lambda lam, t: 0.3 if t < 2 else 0.7)
TRACED = along_trajectory(PLAIN, DESCENT, lambda lam, t: 0.3 * (2 - t) + 0.7 * (t - 1))


@each_framework
@pytest.mark.parametrize("engine", [e for e in OF_THE_RUN if e != Spectral()], ids=str)
def test_an_objective_along_the_trajectory(engine, framework):
    """The weights of the optimum are Σ_t v_t h (1 - ηh)^{2t}."""
    problem, dynamics = ALONG if framework is TORCH else TRACED
    weights = sum(v * H * (1 - ETA * H) ** (2 * t) for v, t in zip(V, (1, 2), strict=True))
    expected = float((weights * A).sum() / weights.sum())
    assert expected == pytest.approx(0.0987952, abs=1e-7)
    assert optimum(framework, problem, dynamics, engine) == pytest.approx(expected, abs=1e-10)


@each_framework
@pytest.mark.parametrize("engine", [Reverse(), Unrolled(), Forward(), Implicit()], ids=str)
def test_tasks_at_once_are_the_tasks_one_by_one(engine, framework):
    problem, expected, steps = PLAIN, 0.0153846154, STEPS
    if isinstance(engine, Implicit):
        problem, expected, steps = PROXIMAL, 0.5, 300
    data, together = framework.arrays(TASKS), over_tasks(problem)

    def slope(theta):
        theta = framework.arrays(torch.tensor(theta, dtype=torch.float64))
        return float(hypergradient(together, DESCENT, theta, data, steps=steps, engine=engine).grad)

    assert zero_of(slope) == pytest.approx(expected, abs=1e-9)


@each_framework
@pytest.mark.parametrize("chunk", [None, 1, 2, 7])
def test_the_mean_over_tasks_is_differentiated_chunk_by_chunk(chunk, framework):
    data, descent = framework.arrays(TASKS), DESCENT

    def mean(theta):
        return mean_objective(PLAIN, descent, theta, data, steps=STEPS, chunk=chunk)

    theta = framework.arrays(torch.tensor(0.3, dtype=torch.float64))
    each = [hypergradient(PLAIN, descent, theta, task(framework, i), steps=STEPS) for i in range(2)]
    if framework is TORCH:
        theta.requires_grad_()
        value = mean(theta)
        (2 * value).backward()
        value, grad = value.detach(), theta.grad / 2
    else:
        value, grad = jax.jit(jax.value_and_grad(mean))(theta)
    np.testing.assert_allclose(value, (each[0].value + each[1].value) / 2, rtol=1e-12)
    np.testing.assert_allclose(grad, (each[0].grad + each[1].grad) / 2, rtol=1e-12)


@pytest.mark.parametrize("engine", OF_THE_RUN, ids=str)
def test_the_mean_over_tasks_without_a_gradient(engine):
    """w_T - a = (1 - ηh)^T (θ - a), and a run that grows is refused there too."""
    theta = torch.tensor(0.3, dtype=torch.float64)
    for steps in (0, 1, STEPS):
        value = mean_objective(PLAIN, DESCENT, theta, TASKS, steps=steps, engine=engine)
        expected = (0.5 * H * (1 - ETA * H) ** (2 * steps) * (0.3 - A) ** 2).mean()
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    fast = GradientDescent(step_size=3.0)
    with pytest.raises(DivergenceError):
        mean_objective(PLAIN, fast, theta, TASKS, steps=60, engine=engine)


def test_wrong_chunks_and_tasks_of_different_numbers_are_refused():
    theta = torch.tensor(0.3, dtype=torch.float64)
    with pytest.raises(ValueError, match="chunk must be at least 1 task, found 0"):
        mean_objective(PLAIN, DESCENT, theta, TASKS, steps=1, chunk=0)
    with pytest.raises(ValueError, match=r"one leading axis over the tasks.*\[1, 2\]"):
        mean_objective(PLAIN, DESCENT, theta, {"h": H, "a": A[:1]}, steps=1)


def test_the_mean_over_tasks_refuses_a_second_derivative():
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value = mean_objective(PLAIN, DESCENT, theta, TASKS, steps=STEPS)
    (grad,) = torch.autograd.grad(value, theta, create_graph=True)
    with pytest.raises(RuntimeError, match="Unrolled"):
        torch.autograd.grad(grad, theta)


def test_a_new_task_in_every_hyper_iteration():
    """`minimize` walks to the optimum of MAML with the tasks in turn, data being the argument."""
    made = []

    def data(k):
        made.append(k)
        return task(TORCH, k % 2)

    theta = torch.tensor(0.9, dtype=torch.float64)
    run = minimize(
        PLAIN,
        DESCENT,
        theta,
        data,
        steps=STEPS,
        outer_steps=400,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.2),
    )
    assert made == list(range(400))
    assert run.lam.item() == pytest.approx(0.0153846, abs=0.01)


def test_a_three_level_problem():
    """Above MAML's θ a learned rate: φ ↦ ½(θ(φ) - ½)² where θ(φ) descends f_T(·; φ).

    f(θ, φ) = ½ (1-φ)⁴ θ² for h = 1, a = 0, T = 2; K steps of rate β on it from θ = 1 give
    θ = (1 - β (1-φ)⁴)^K.
    """
    beta, count = 0.3, 3

    def middle(theta, phi):
        return outer_objective(
            Problem(
                inner=lambda w, lam: 0.5 * w**2,
                outer=lambda w, lam: 0.5 * w**2,
                init=lambda lam: 1.0 * lam["theta"],
            ),
            GradientDescent(step_size=lambda lam, t: lam["phi"]),
            {"theta": theta, "phi": phi},
            steps=2,
            engine=Unrolled(),
        )

    above = Problem(
        inner=middle, outer=lambda theta, phi: 0.5 * (theta - 0.5) ** 2, init=torch.ones_like
    )
    phi = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    expected = 0.5 * ((1 - beta * (1 - phi) ** 4) ** count - 0.5) ** 2
    (slope,) = torch.autograd.grad(expected, phi)
    for engine in (Reverse(), Unrolled(), Checkpointed()):
        found = hypergradient(
            above, GradientDescent(step_size=beta), phi, steps=count, engine=engine
        )
        torch.testing.assert_close(found.value, expected.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(found.grad, slope, rtol=1e-10, atol=0)
