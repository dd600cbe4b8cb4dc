"""The outer loop on problems whose minimiser is known."""

import itertools
import math
from functools import partial

import pytest
import torch

from bilevel_core import (
    ConvergenceError,
    DivergenceError,
    Exact,
    GradientBelow,
    GradientDescent,
    Implicit,
    Interval,
    OuterRecord,
    Patience,
    Positive,
    Problem,
    Simplex,
    hypergradient,
    in_turn,
    minimize,
)
from bilevel_core.backends.torch import TorchBackend
from problems import ridge, shift

BOX = Interval(low=-2.0, high=2.0)
DESCENT = GradientDescent(step_size=0.3)
SGD = partial(torch.optim.SGD, lr=0.5)


def test_plain_descent_follows_the_hypergradient_exactly():
    known = shift()
    run = minimize(known.problem, DESCENT, known.lam, steps=4, outer_steps=3, optimizer=SGD)
    lam = known.lam
    for value in run.values:
        computed = hypergradient(known.problem, DESCENT, lam, steps=4)
        assert computed.value.item() == value
        lam = lam - 0.5 * computed.grad
    assert torch.equal(run.lam, lam)


def test_the_minimiser_is_found_and_the_start_left_alone():
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    problem = Problem(
        inner=lambda w, lam: ((w - lam["a"]) ** 2).sum(),
        outer=lambda w, lam: ((w - target) ** 2).sum(),
        init=lambda lam: torch.zeros_like(lam["a"]),
    )
    lam = {"a": torch.zeros(2, dtype=torch.float64)}
    run = minimize(
        problem,
        DESCENT,
        lam,
        steps=30,
        outer_steps=300,
        optimizer=partial(torch.optim.Adam, lr=0.05),
    )
    assert torch.allclose(run.lam["a"], target, atol=1e-3)
    assert run.values[-1] < 1e-5 * run.values[0]
    assert torch.equal(lam["a"], torch.zeros(2, dtype=torch.float64))


def test_the_callback_sees_each_step_and_stops_the_run():
    seen = []

    def stop_at_two(record):
        seen.append(record)
        return record.index == 2

    known = ridge()
    run = minimize(
        known.problem,
        GradientDescent(step_size=0.1),
        known.lam,
        steps=2,
        outer_steps=10,
        optimizer=SGD,
        callback=stop_at_two,
    )
    assert [record.index for record in seen] == [0, 1, 2]
    assert run.values == tuple(record.value for record in seen)
    assert torch.equal(run.lam, seen[-1].lam)
    assert torch.equal(seen[0].lam, known.lam)


def test_negative_outer_steps_are_refused():
    known = shift()
    with pytest.raises(ValueError, match="outer_steps must be at least 0, found -1"):
        minimize(known.problem, DESCENT, known.lam, steps=1, outer_steps=-1, optimizer=SGD)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def plain(value):
    """E = value(λ) and an inner run that has nothing to do: the outer loop by itself."""
    return Problem(
        inner=lambda w, lam: 0.5 * (w - 1) ** 2,
        outer=lambda w, lam: value(lam) + 0 * w,
        init=lambda lam: torch.zeros((), dtype=torch.float64),
    )


def run_plain(value, lam, outer_steps, lr=0.25, **options):
    sgd = partial(torch.optim.SGD, lr=lr)
    return minimize(
        plain(value), DESCENT, lam, steps=1, outer_steps=outer_steps, optimizer=sgd, **options
    )


def test_the_records_and_the_best():
    run = run_plain(lambda lam: (lam - 1) ** 2, tensor(3.0)[0], 4, lr=1.25)  # it overshoots
    # λ - 1 is multiplied by 1 - 2.5 each time.
    expected = [(2 * (-1.5) ** k) ** 2 for k in range(4)]
    assert run.values == pytest.approx(expected, rel=1e-14)
    assert run.grad_norms == pytest.approx([4 * 1.5**k for k in range(4)], rel=1e-14)
    assert (run.best_index, run.best_value, run.best_lam.item()) == (0, 4.0, 3.0)
    assert run.lam.item() == pytest.approx(1 + 2 * 1.5**4)
    assert run.stopped == "outer_steps"


def test_the_first_of_equal_values_is_the_best():
    run = run_plain(lambda lam: lam.abs(), tensor(-0.5)[0], 4, lr=1.0)  # -½, ½, -½, ½
    assert run.values == (0.5,) * 4
    assert run.best_index == 0
    assert run.best_lam.item() == -0.5


def test_no_hyper_iteration_leaves_the_start():
    run = run_plain(lambda lam: lam**2, tensor(3.0)[0], 0)
    assert run.lam.item() == run.best_lam.item() == 3.0
    assert run.history == run.values == ()
    assert run.best_index is None
    assert run.best_value == math.inf
    assert run.stopped == "outer_steps"


def test_the_clock_is_read_around_every_hypergradient():
    ticks = itertools.accumulate([1.0, 2.0] * 3)  # two readings a hyper-iteration, 2 s apart
    run = run_plain(lambda lam: lam**2, tensor(3.0)[0], 3, clock=lambda: next(ticks))
    assert [record.seconds for record in run.history] == [2.0] * 3


def test_patience_stops_at_the_minimiser():
    run = run_plain(lambda lam: (lam - 1) ** 2, tensor(3.0)[0], 50, lr=0.5, stop=Patience(steps=3))
    assert run.stopped == "stop"
    assert run.values == (4.0, 0.0, 0.0, 0.0, 0.0)  # one step arrives; three bring nothing
    assert run.best_index == 1
    assert run.lam.item() == 1.0


def records(*values):
    return [OuterRecord(value=v, grad_norm=v, seconds=0.0) for v in values]


def test_patience_counts_from_the_best_so_far():
    assert not Patience(steps=2)(records(3, 2))
    assert not Patience(steps=2)(records(3, 4, 2))
    assert Patience(steps=2)(records(3, 4, 3))
    assert Patience(steps=1)(records(3, 2, 2.5))
    assert Patience(steps=2, min_improvement=1.0)(records(3, 2.5, 2.0))
    assert not Patience(steps=2, min_improvement=0.5)(records(3, 2.5, 2.0))


def test_a_small_gradient_stops():
    run = run_plain(lambda lam: lam**2, tensor(1.0)[0], 50, stop=GradientBelow(tolerance=0.1))
    # λ halves each time, and so does the gradient: 1/8 is above a tenth, 1/16 is not.
    assert len(run.values) == 5
    assert run.stopped == "stop"


def test_rules_that_cannot_be_met_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, found 0"):
        Patience(steps=0)
    with pytest.raises(ValueError, match="min_improvement must be at least 0, found -1"):
        Patience(steps=1, min_improvement=-1)
    with pytest.raises(ValueError, match="tolerance must be above 0, found nan"):
        GradientBelow(tolerance=math.nan)


def test_the_callback_comes_before_the_rule():
    run = run_plain(
        lambda lam: lam**2, tensor(1.0)[0], 5, stop=lambda _: True, callback=lambda _: True
    )
    assert run.stopped == "callback"


@pytest.mark.parametrize("among", [Positive(), Interval(low=0.0, high=4.0)], ids=str)
def test_a_reparametrised_step_by_hand(among):
    """θ ← θ - r ∂λ/∂θ ∂E/∂λ: ∂λ/∂θ is λ for exp, and λ (4 - λ) / 4 for the interval."""
    lam, rate = 3.0, 0.125
    seen = []
    run = run_plain(
        lambda lam: (lam - 1) ** 2,
        tensor(lam)[0],
        3,
        lr=rate,
        reparametrize=among,
        callback=lambda step: seen.append(step.lam.item()),
    )
    by_hand = [lam]
    for _ in range(3):
        if among == Positive():
            lam = math.exp(math.log(lam) - rate * lam * 2 * (lam - 1))
        else:
            theta = math.log(lam / (4 - lam)) - rate * lam * (4 - lam) / 4 * 2 * (lam - 1)
            lam = 4 / (1 + math.exp(-theta))
        by_hand.append(lam)
    assert [*seen, run.lam.item()] == pytest.approx(by_hand, rel=1e-13)
    # Values and gradient norms are those in λ.
    assert run.grad_norms == pytest.approx([abs(2 * (x - 1)) for x in by_hand[:3]], rel=1e-12)


def test_projected_descent_by_hand():
    """λ ← clip(λ - ½ · 2 (λ - target)) = the nearest point of the box to the target, at once."""
    target = {"a": tensor(5.0, -1.0), "b": tensor(5.0)}
    run = run_plain(
        lambda lam: sum(((lam[key] - target[key]) ** 2).sum() for key in target),
        {"a": tensor(0.5, 0.5), "b": tensor(0.0)},
        2,
        lr=0.5,
        project={"a": Interval(low=0.0, high=1.0), "b": None},
    )
    assert torch.equal(run.lam["a"], tensor(1.0, 0.0))
    assert torch.equal(run.lam["b"], tensor(5.0))
    assert run.values[1] == 17.0


def test_momentum_goes_on_from_the_projected_point():
    """With momentum ½ and slope -1 at rate 1 the steps are 1, 1½, 1¾, each from min(λ, 1)."""
    sgd = partial(torch.optim.SGD, lr=1.0, momentum=0.5)
    seen = []
    minimize(
        plain(lambda lam: torch.where(lam < 0.9, -lam, lam)),
        DESCENT,
        tensor(-1.0)[0],
        steps=1,
        outer_steps=5,
        optimizer=sgd,
        project=Interval(low=-4.0, high=1.0),
        callback=lambda step: seen.append(step.lam.item()),
    )
    # Slopes -1, -1, then +1 at λ = 1: velocities -1, -1½, ¼, 9/8.
    assert seen == [-1.0, 0.0, 1.0, 0.75, 1.0]


def test_weights_of_a_simplex_find_the_vertex():
    costs = tensor(3.0, 1.0, 2.0)
    for options in ({"reparametrize": Simplex()}, {"project": Simplex()}):
        run = run_plain(lambda lam: costs @ lam, tensor(0.4, 0.3, 0.3), 200, lr=0.5, **options)
        assert Simplex().contains(run.lam, TorchBackend())
        assert run.lam[1].item() > 0.95
        assert all(b <= a for a, b in itertools.pairwise(run.values))


def test_a_penalty_stays_positive_and_finds_the_optimum():
    """Ridge shrinkage in one dimension: w_λ = 1 / (1 + λ) should be ½, so λ = 1."""
    problem = Problem(
        inner=lambda w, lam: 0.5 * (w - 1) ** 2 + 0.5 * lam["decay"] * w**2,
        outer=lambda w, lam: (w - 0.5) ** 2,
        init=lambda lam: torch.zeros_like(lam["decay"]),
    )
    run = minimize(
        problem,
        DESCENT,
        {"decay": tensor(9.0)[0]},
        steps=0,
        outer_steps=200,
        optimizer=partial(torch.optim.SGD, lr=4.0),
        engine=Exact(),
        reparametrize={"decay": Positive()},
        stop=GradientBelow(tolerance=1e-9),
    )
    assert run.stopped == "stop"
    assert run.lam["decay"].item() == pytest.approx(1.0, rel=1e-6)


def test_sets_are_checked_before_the_run():
    for options, message in (
        ({"reparametrize": Positive()}, r"λ starts at -1, which is not strictly inside"),
        ({"project": Positive()}, "λ starts at -1, outside"),
        ({"reparametrize": BOX, "project": BOX}, "λ is given to both"),
    ):
        with pytest.raises(ValueError, match=message):
            run_plain(lambda lam: lam**2, tensor(-1.0)[0], 1, **options)


def test_tasks_in_turn():
    tasks = [plain(lambda lam, j=j: (j + 1) * lam) for j in range(3)]
    run = minimize(in_turn(tasks), DESCENT, tensor(1.0)[0], steps=1, outer_steps=4, optimizer=SGD)
    assert run.grad_norms == (1.0, 2.0, 3.0, 1.0)


def test_a_run_that_fails_says_in_which_hyper_iteration():
    """L = ½ λ w² at η = 1 diverges once λ is far above 2, where the ascent takes it."""
    problem = Problem(
        inner=lambda w, lam: 0.5 * lam * (w - 1) ** 2,
        outer=lambda w, lam: -(lam**2) + 0 * w,
        init=torch.zeros_like,
    )
    seen = []
    with pytest.raises(DivergenceError) as caught:
        minimize(
            problem,
            GradientDescent(step_size=1.0),
            tensor(1.0)[0],
            steps=60,
            outer_steps=9,
            optimizer=SGD,
            callback=lambda step: seen.append(step.index),
        )
    (note,) = caught.value.__notes__
    assert f"this was hyper-iteration {len(seen)}:" in note
    assert seen == list(range(len(seen)))
    assert len(seen) > 1
    known = ridge()
    with pytest.raises(ConvergenceError) as caught:
        minimize(
            known.problem,
            DESCENT,
            known.lam,
            steps=1,
            outer_steps=1,
            optimizer=SGD,
            engine=Implicit(),
        )
    assert "hyper-iteration 0:" in caught.value.__notes__[0]


@pytest.mark.jax
def test_jax_has_the_same_run():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    pytest.importorskip("bilevel_core.backends.jax")
    jax.config.update("jax_enable_x64", True)
    xp = jax.numpy
    sets = {
        "reparametrize": {"rate": Interval(low=0.0, high=1.0), "weights": Simplex(), "shift": None},
        "project": {"rate": None, "weights": None, "shift": Positive()},
    }

    def problem(zeros):
        return Problem(
            inner=lambda w, lam: 0.5 * ((w - lam["shift"]) ** 2 * lam["weights"]).sum(),
            outer=lambda w, lam: ((w - 1) ** 2).sum(),
            init=lambda lam: zeros(lam["weights"]),
        )

    def run(make, zeros, optimizer):
        lam = {"rate": make(0.1), "weights": make([0.5, 0.25, 0.25]), "shift": make(0.3)}
        descent = GradientDescent(step_size=lambda lam, t: lam["rate"])
        return minimize(
            problem(zeros), descent, lam, steps=4, outer_steps=6, optimizer=optimizer, **sets
        )

    in_torch = run(
        partial(torch.tensor, dtype=torch.float64),
        torch.zeros_like,
        partial(torch.optim.SGD, lr=0.2),
    )
    in_jax = run(xp.array, xp.zeros_like, optax.sgd(0.2))
    assert in_jax.values == pytest.approx(in_torch.values, rel=1e-12)
    assert in_torch.values[-1] < in_torch.values[0]
    for key, leaf in in_torch.lam.items():
        assert in_jax.lam[key].tolist() == pytest.approx(leaf.tolist(), rel=1e-12)
