"""Real-time updates of λ against forward mode and against recursions by hand."""

from functools import partial

import pytest
import torch

from bilevel_core import (
    DivergenceError,
    Forward,
    GradientDescent,
    HeavyBall,
    Interval,
    Positive,
    Problem,
    hypergradient,
    minimize_online,
    solve_inner,
)
from problems import ALL, ridge, shift

SGD = partial(torch.optim.SGD, lr=0.5)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class Still(torch.optim.Optimizer):
    """An optimiser that never moves and notes the gradients."""

    def __init__(self, params, seen):
        super().__init__(params, {})
        self.seen = seen

    def step(self, closure=None):
        self.seen.append([p.grad.clone() for p in self.param_groups[0]["params"]])


@pytest.mark.parametrize("known", ALL, ids=lambda k: f"{k.name}-{k.lam.numel()}")
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("dynamics", [GradientDescent, HeavyBall], ids=lambda d: d.__name__)
def test_while_lambda_stands_still_the_direction_is_the_hypergradient(known, chunk, dynamics):
    seen, descent = [], dynamics(step_size=known.eta)
    run = minimize_online(
        known.problem,
        descent,
        known.lam,
        steps=8,
        optimizer=partial(Still, seen=seen),
        chunk=chunk,
    )
    assert len(seen) == len(run.values) == len(run.losses) == len(run.lams) == 8
    for t, (grad,) in enumerate(seen, start=1):
        forward = hypergradient(known.problem, descent, known.lam, steps=t, engine=Forward())
        assert torch.allclose(grad, forward.grad, rtol=1e-12, atol=1e-14)
        assert run.values[t - 1] == pytest.approx(forward.value.item(), rel=1e-12)
        w = descent.params(forward.state)
        loss = known.problem.inner(w, known.lam).item()
        assert run.losses[t - 1] == pytest.approx(loss, rel=1e-12)
    assert torch.equal(run.lam, known.lam)
    assert torch.allclose(descent.params(run.state), w, rtol=1e-12)


def by_hand(lam, eta, rate, steps, every):
    """L = ½(w - λ)², E = ½w²: w ← w - η (w - λ), z ← (1 - η) z + η, and λ ← λ - r w z at times."""
    w = z = 0.0
    lams, values = [], []
    for t in range(1, steps + 1):
        w, z = w - eta * (w - lam), (1 - eta) * z + eta
        if t % every == 0:
            lams.append(lam)
            values.append(0.5 * w**2)
            lam = lam - rate * w * z
    return lam, w, lams, values


@pytest.mark.parametrize("every", [1, 3, 7, 20])
def test_the_recursion_by_hand(every):
    run = minimize_online(
        shift().problem,
        GradientDescent(step_size=0.3),
        shift().lam,
        steps=20,
        optimizer=SGD,
        every=every,
    )
    lam, w, lams, values = by_hand(1.7, 0.3, 0.5, 20, every)
    assert run.lam.item() == pytest.approx(lam, rel=1e-12)
    assert run.state.item() == pytest.approx(w, rel=1e-12)
    assert [x.item() for x in run.lams] == pytest.approx(lams, rel=1e-12)
    assert run.values == pytest.approx(values, rel=1e-12)
    assert len(run.values) == 20 // every


def rates(lr, momentum):
    return {"lr": tensor(lr)[0], "momentum": tensor(momentum)[0]}


def slow_problem():
    curvature = tensor(1.0, 0.2, 0.05)
    return Problem(
        inner=lambda w, lam: 0.5 * (curvature * (w - 1) ** 2).sum(),
        outer=lambda w, lam: 0.5 * (curvature * (w - 1) ** 2).sum(),
        init=lambda lam: torch.zeros(3, dtype=torch.float64),
    )


LEARNED = HeavyBall(step_size=lambda lam, t: lam["lr"], momentum=lambda lam, t: lam["momentum"])
SETS = {"lr": Interval(low=0.0, high=1.0), "momentum": Interval(low=0.0, high=0.95)}


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("option", ["reparametrize", "project"])
def test_learned_rates_beat_the_fixed_run(option, chunk):
    lam, seen = rates(0.05, 0.3), []
    run = minimize_online(
        slow_problem(),
        LEARNED,
        lam,
        steps=60,
        optimizer=partial(torch.optim.SGD, lr=0.05),
        chunk=chunk,
        callback=lambda step: seen.append((step.index, step.value)),
        **{option: SETS},
    )
    fixed = solve_inner(slow_problem(), LEARNED, lam, steps=60)
    at_end = slow_problem().outer(run.state["w"], run.lam).item()
    assert at_end < 0.9 * slow_problem().outer(fixed, lam).item()
    assert seen == list(enumerate(run.values))
    for at in (*run.lams, run.lam):
        assert all(SETS[key].contains(at[key], None) for key in SETS)
    assert run.lam["lr"].item() > 0.05


def test_one_reparametrised_update_by_hand():
    """w_1 = ηλ, z_1 = η; with λ = exp θ the update multiplies λ by exp(-r λ w_1 z_1)."""
    run = minimize_online(
        shift().problem,
        GradientDescent(step_size=0.5),
        tensor(2.0)[0],
        steps=1,
        optimizer=SGD,
        reparametrize=Positive(),
    )
    assert run.lam.item() == pytest.approx(2 * torch.tensor(-0.5).double().exp().item(), rel=1e-14)


def test_batches_are_those_of_the_steps():
    problem = Problem(
        inner=lambda w, lam, batch: 0.5 * batch * (w - lam) ** 2,
        outer=lambda w, lam: 0.5 * w**2,
        init=torch.zeros_like,
        batches=lambda t: 1.0 / t,
    )
    seen, descent = [], GradientDescent(step_size=0.5)
    lam = tensor(2.0)[0]
    minimize_online(problem, descent, lam, steps=5, optimizer=partial(Still, seen=seen), every=5)
    expected = hypergradient(problem, descent, lam, steps=5).grad
    assert seen[0][0].item() == pytest.approx(expected.item(), rel=1e-13)


def test_the_callback_stops_before_the_update():
    run = minimize_online(
        shift().problem,
        GradientDescent(step_size=0.3),
        shift().lam,
        steps=20,
        optimizer=SGD,
        every=2,
        callback=lambda step: step.index == 1,
    )
    lam, _, _, values = by_hand(1.7, 0.3, 0.5, 3, 2)
    assert run.lam.item() == pytest.approx(lam, rel=1e-12)
    assert len(run.lams) == 2
    assert run.state.item() == pytest.approx(by_hand(1.7, 0.3, 0.5, 4, 2)[1], rel=1e-12)
    assert run.values[:1] == pytest.approx(values, rel=1e-12)


def test_no_step_leaves_everything():
    run = minimize_online(
        ridge().problem, GradientDescent(step_size=0.1), ridge().lam, steps=0, optimizer=SGD
    )
    assert torch.equal(run.lam, ridge().lam)
    assert torch.equal(run.state, 0.1 * ridge().lam)
    assert run.values == run.losses == run.lams == ()


def test_a_run_that_is_not_finite_is_refused_with_its_step():
    problem = Problem(
        inner=lambda w, lam: (w**4 + lam * w).sum(),
        outer=lambda w, lam: w.sum(),
        init=lambda lam: 3 * torch.ones_like(lam),
    )
    with pytest.raises(DivergenceError, match=r"inner run is not finite after step [56]: lower"):
        minimize_online(
            problem, GradientDescent(step_size=1.0), tensor(1.0), steps=50, optimizer=SGD
        )


def test_an_outer_objective_that_is_not_finite_is_refused_with_its_step():
    problem = Problem(
        inner=lambda w, lam: 0.5 * (w - lam) ** 2,
        outer=lambda w, lam: torch.where(w > 1.2, torch.log(w - w), w),
        init=torch.zeros_like,
    )
    # w = 1.7 (1 - 0.7^t) passes 1.2 at the fourth step; a rate of 0 leaves λ alone.
    with pytest.raises(DivergenceError, match=r"outer objective .* not finite after step 4, alth"):
        minimize_online(
            problem,
            GradientDescent(step_size=0.3),
            shift().lam,
            steps=9,
            optimizer=partial(torch.optim.SGD, lr=0.0),
        )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"every": 0}, "every must be at least 1 inner step, found 0"),
        ({"every": 2}, "every = 2 is more than the 1 inner steps in all: λ would never move"),
        ({"chunk": 0}, "chunk must be at least 1 hyperparameter, found 0"),
        ({"steps": -1}, "steps must be at least 0, found -1"),
        ({"project": Interval(low=3, high=4)}, "λ starts at 1.7, outside Interval"),
    ],
)
def test_input_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        minimize_online(
            shift().problem,
            GradientDescent(step_size=0.3),
            shift().lam,
            **{"steps": 1, "optimizer": SGD, **option},
        )


@pytest.mark.jax
def test_jax_has_the_same_run():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    pytest.importorskip("bilevel_core.backends.jax")
    jax.config.update("jax_enable_x64", True)
    xp = jax.numpy
    for every in (1, 3):
        run = minimize_online(
            Problem(
                inner=lambda w, lam: 0.5 * (w - lam) ** 2,
                outer=lambda w, lam: 0.5 * w**2,
                init=xp.zeros_like,
            ),
            GradientDescent(step_size=0.3),
            xp.array(1.7),
            steps=10,
            optimizer=optax.sgd(0.5),
            every=every,
        )
        lam, w, lams, values = by_hand(1.7, 0.3, 0.5, 10, every)
        assert float(run.lam) == pytest.approx(lam, rel=1e-12)
        assert float(run.state) == pytest.approx(w, rel=1e-12)
        assert [float(x) for x in run.lams] == pytest.approx(lams, rel=1e-12)
        assert run.values == pytest.approx(values, rel=1e-12)


@pytest.mark.jax
def test_a_dict_that_is_not_in_the_order_of_its_keys_has_the_same_run_in_jax():
    """JAX sorts the keys of what it returns."""
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    pytest.importorskip("bilevel_core.backends.jax")
    jax.config.update("jax_enable_x64", True)

    def run(make, zeros, optimizer):
        problem = Problem(
            inner=lambda w, lam: 0.5 * ((w["y"] - lam["z"]) ** 2).sum() + 0.5 * w["b"] ** 2,
            outer=lambda w, lam: ((w["y"] - 1) ** 2).sum() + w["b"] * lam["a"],
            init=lambda lam: {"y": zeros(lam["z"]), "b": lam["a"] * 1},
        )
        return minimize_online(
            problem,
            HeavyBall(step_size=0.2, momentum=0.5),
            {"z": make([0.1, 0.2]), "a": make(0.7)},
            steps=9,
            optimizer=optimizer,
            every=2,
            chunk=2,
            reparametrize={"z": Positive(), "a": None},
        )

    double = partial(torch.tensor, dtype=torch.float64)
    in_torch = run(double, torch.zeros_like, partial(torch.optim.SGD, lr=0.1))
    in_jax = run(jax.numpy.array, jax.numpy.zeros_like, optax.sgd(0.1))
    assert in_jax.values == pytest.approx(in_torch.values, rel=1e-12)
    assert in_jax.lam["z"].tolist() == pytest.approx(in_torch.lam["z"].tolist(), rel=1e-12)
    assert float(in_jax.lam["a"]) == pytest.approx(in_torch.lam["a"].item(), rel=1e-12)


def test_a_hyperparameter_that_only_a_late_step_uses_is_not_refused_and_one_that_none_does_is():
    known = shift()
    dynamics = GradientDescent(step_size=lambda lam, t: lam["sizes"][t - 1])
    problem = Problem(
        inner=lambda w, lam: known.problem.inner(w, lam["target"]),
        outer=lambda w, lam: known.problem.outer(w, lam["target"]),
        init=lambda lam: 0 * lam["target"],
    )
    sizes = [torch.tensor(0.1 * t, dtype=torch.float64) for t in range(1, 5)]
    lam = {"target": known.lam, "sizes": sizes}
    still = partial(torch.optim.SGD, lr=0.0)
    run = minimize_online(problem, dynamics, lam, steps=4, optimizer=still)
    assert len(run.values) == 4
    lam["sizes"] = [*sizes, torch.tensor(0.5, dtype=torch.float64)]
    with pytest.raises(ValueError, match=r"nothing uses λ\['sizes'\]\[4\]"):
        minimize_online(problem, dynamics, lam, steps=4, optimizer=still)
