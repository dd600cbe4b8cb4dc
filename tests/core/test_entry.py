"""The entry point refuses what it cannot differentiate, in words that say what to do."""

import doctest
import importlib
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bilevel_core import (
    Checkpointed,
    Code,
    Custom,
    DivergenceError,
    Exact,
    Forward,
    GradientDescent,
    Implicit,
    Problem,
    Reverse,
    Truncated,
    Unrolled,
    hypergradient,
    solve_inner,
)
from bilevel_core.hypergradient import checked_run, value_and_gradient
from problems import ridge, shift

DESCENT, REVERSE = GradientDescent(step_size=0.1), Reverse()


def problem(**changed) -> Problem:
    known = shift().problem
    parts = {"inner": known.inner, "outer": known.outer, "init": known.init}
    return Problem(**(parts | changed))


@pytest.mark.parametrize(
    ("lam", "words"),
    [
        (0.5, r"λ is a builtins.float: expected torch arrays or jax arrays.*torch.as_tensor"),
        ({"a": [1.0]}, r"λ\['a'\]\[0\] is a builtins.float"),
        ({}, "λ holds no array"),
        (torch.tensor(3), r"λ is int64 of shape \(\): expected floating-point"),
        (torch.tensor(1j), "λ is complex64"),
        (torch.nn.Linear(1, 1), r"λ is a torch.*Linear: .* give dict\(net.named_parameters\(\)\)"),
        (torch.nn.Linear(1, 1).parameters(), r"λ is a builtins.generator: .*functional_call"),
    ],
)
def test_lam_must_be_floating_arrays_of_a_framework(lam, words: str):
    with pytest.raises(TypeError, match=words):
        hypergradient(problem(), DESCENT, lam, steps=1)


@pytest.mark.parametrize(
    ("dynamics", "words"),
    [
        (GradientDescent, "dynamics is the class GradientDescent: make one"),
        (torch.optim.SGD([torch.ones(1)], lr=0.1), "dynamics is a SGD, which has no init and no"),
        (0.1, "dynamics is a float, which has no init and no step and no params: expected"),
    ],
)
def test_dynamics_must_be_dynamics(dynamics, words: str):
    with pytest.raises(TypeError, match=words):
        hypergradient(problem(), dynamics, torch.tensor(1.0), steps=1)


@pytest.mark.parametrize(
    ("changed", "steps", "error", "words"),
    [
        ({}, -1, ValueError, "steps must be at least 0, found -1"),
        ({}, 1.0, TypeError, "steps must be an int, found 1.0"),
        ({}, True, TypeError, "steps must be an int"),
        (
            {"outer": lambda w, lam: torch.stack([w, w])},
            1,
            ValueError,
            r"the outer objective must return a scalar array, found shape \(2,\)",
        ),
        ({"outer": lambda w, lam: 1.0}, 1, TypeError, "the outer objective is a float"),
        (
            {"inner": lambda w, lam: (w - lam).repeat(3)},
            1,
            ValueError,
            "the inner objective must return a scalar array",
        ),
        ({"init": lambda lam: 0.0}, 1, TypeError, r"w_0 = init\(λ\) is a float"),
        ({"init": lambda lam: torch.tensor(0)}, 1, TypeError, "w_0 = init.* is int64"),
    ],
)
def test_bad_problems_are_refused(changed, steps, error, words: str):
    lam = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(error, match=words):
        hypergradient(problem(**changed), DESCENT, lam, steps=steps)


def test_dynamics_that_change_the_shape_are_refused():
    widening = GradientDescent(step_size=lambda lam, t: torch.ones(2, dtype=torch.float64))
    lam = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"change state from float64 of shape \(\) to .*\(2,\)"):
        hypergradient(problem(), widening, lam, steps=1)


@dataclass(frozen=True)
class Stateful:
    """Dynamics that start from one memory beside w and leave another."""

    at_start: object
    after: object

    def init(self, w, lam):
        return {"w": w, "memory": self.at_start}

    def step(self, gradient, state, lam, t):
        return {"w": state["w"] - 0.1 * gradient(state["w"]), "memory": self.after}

    def params(self, state):
        return state["w"]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (0, "is a int, but λ is made of torch arrays"),
        (None, "is a NoneType"),
        (np.zeros(2), "is a ndarray"),
        (torch.tensor(1j), r"is complex64 of shape \(\): expected real numbers"),
    ],
)
def test_a_state_must_be_made_of_arrays_of_real_numbers(memory, words, steps):
    lam = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"state\['memory'\] " + words):
        hypergradient(problem(), Stateful(memory, memory), lam, steps=steps)


def test_a_step_must_return_arrays_too():
    lam = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"state after a step\['memory'\] is a int"):
        hypergradient(problem(), Stateful(0 * lam, 0), lam, steps=1)
    with pytest.raises(ValueError, match=r"change state\['memory'\] from float64 .* to int64"):
        hypergradient(problem(), Stateful(0 * lam, torch.tensor(0)), lam, steps=1)


def test_a_custom_map_must_return_an_array():
    lam = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(TypeError, match="state after a step is a float"):
        hypergradient(problem(), Custom(update=lambda w, lam, t: 0.0), lam, steps=1)


@pytest.mark.parametrize(
    ("update", "name"),
    [(lambda w, lam, t: w.mul_(0.5), "state"), (lambda w, lam, t: w + lam.add_(1.0), "λ")],
)
def test_dynamics_that_write_into_their_arguments_are_refused(update, name):
    lam = torch.tensor([0.5, 1.0], dtype=torch.float64)
    vector = Problem(
        inner=lambda w, lam: (w * lam).sum(),
        outer=lambda w, lam: (w**2).sum(),
        init=lambda lam: 2 * lam,
    )
    with pytest.raises(ValueError, match=f"write into their {name}: each must be a pure"):
        hypergradient(vector, Custom(update=update), lam, steps=3)


def dropped(w, lam):
    """A regression whose inputs are dropped at random, from a start where its value is no hint."""
    x = torch.nn.functional.dropout(torch.linspace(1, 2, 21, dtype=w.dtype).reshape(7, 3), 0.5)
    return ((x @ w - 1) ** 2).mean() + lam * (w**2).sum()


def drawing(update=None, **changed):
    """A problem that draws at random within its inner objective, or in its map."""
    parts = {"outer": lambda w, lam: (w**2).sum(), "init": lambda lam: 0 * lam.repeat(3)}
    if update is None:
        return Problem(**({"inner": dropped} | parts | changed)), DESCENT
    return Problem(inner=lambda w, lam: (lam * w).sum(), **parts), Custom(update=update)


RUNNING_AGAIN = [Reverse(), Checkpointed(), Truncated(horizon=2), Forward(), Implicit(), Exact()]
NOISY = {
    "in the inner objective": drawing(),
    "in the map": drawing(lambda w, lam, t: 0.5 * w + 1e-3 * torch.randn_like(w)),
}


@pytest.mark.parametrize("engine", RUNNING_AGAIN, ids=str)
@pytest.mark.parametrize(("noisy", "dynamics"), NOISY.values(), ids=NOISY)
def test_a_run_that_is_another_when_repeated_is_refused(noisy, dynamics, engine):
    lam = torch.tensor(0.3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"draw at random.*in `batches`.*use Unrolled$"):
        hypergradient(noisy, dynamics, lam, steps=3, engine=engine)


@pytest.mark.parametrize("at", [4, 5])
@pytest.mark.parametrize(
    "engine",
    [
        Reverse(),
        Checkpointed(budget=1),
        Checkpointed(budget=3),
        Truncated(horizon=2),
        Forward(chunk=1),
    ],
    ids=str,
)
def test_how_far_a_step_was_from_itself_is_measured(engine, at):
    """A batch b_t that is 1 at first and 1.5 when asked again moves s_t by η (1.5 - 1) Σλ (1, -2).

    Reverse mode names the largest entry of the difference, forward mode its norm, at the end.
    """
    asked = []

    def batches(t):
        asked.append(t)
        return 1.5 if t == at and asked.count(t) > 1 else 1.0

    way = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    changing = problem(
        inner=lambda w, lam, b: 0.5 * ((w - b * lam.sum() * way) ** 2).sum(),
        outer=lambda w, lam: 0.5 * (w**2).sum(),
        init=lambda lam: 0 * lam.sum() * way,
        batches=batches,
    )
    lam = torch.tensor([0.5, 1.5], dtype=torch.float64)
    run = checked_run(changing, DESCENT, lam, steps=5, engine=engine)
    result = value_and_gradient(engine, run).result
    # A difference in step 4 has shrunk by 1 - η at the end.
    size = 5**0.5 * 0.9 ** (5 - at) if isinstance(engine, Forward) else 2.0
    assert result.code is Code.NOT_REPEATED
    assert result.measured == pytest.approx(0.1 * 0.5 * 2.0 * size, rel=1e-12)
    asked.clear()
    with pytest.raises(ValueError, match="run again led"):
        hypergradient(changing, DESCENT, lam, steps=5, engine=engine)


def test_unrolled_differentiates_the_run_that_was_drawn():
    noisy, dynamics = drawing()

    def value(lam):
        torch.manual_seed(3)
        lam = torch.tensor(lam, dtype=torch.float64)
        return hypergradient(noisy, dynamics, lam, steps=5, engine=Unrolled())

    value(0.3)  # passes the check, which draws too
    slope = (value(0.3 + 1e-6).value - value(0.3 - 1e-6).value) / 2e-6
    assert value(0.3).grad.item() == pytest.approx(slope.item(), rel=1e-6)


def test_a_run_without_derivatives_may_draw():
    noisy, dynamics = drawing()
    lam = torch.tensor(0.3, dtype=torch.float64)
    first, second = (solve_inner(noisy, dynamics, lam, steps=5) for _ in range(2))
    assert not torch.equal(first, second)
    hypergradient(noisy, dynamics, lam, steps=5, engine=Unrolled())
    with pytest.raises(ValueError, match="draw at random"):
        hypergradient(noisy, dynamics, lam, steps=5)


def test_a_batch_that_is_drawn_by_its_step_is_no_noise():
    def batches(t):
        return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(t))

    still, dynamics = drawing(
        inner=lambda w, lam, x: ((x @ w - 1) ** 2).mean() + lam * (w**2).sum(), batches=batches
    )
    lam = torch.tensor(0.3, dtype=torch.float64)
    grads = [
        hypergradient(still, dynamics, lam, steps=4, engine=engine).grad
        for engine in (Unrolled(), REVERSE, Checkpointed(), Truncated(horizon=4), Forward())
    ]
    for grad in grads[1:]:
        assert torch.allclose(grad, grads[0], rtol=1e-12)


def test_a_step_that_is_not_a_number_is_called_that_and_not_noise():
    lost = problem(inner=lambda w, lam: torch.sqrt(w - 1 - lam**2))
    with pytest.raises(DivergenceError, match="not finite at step 1"):
        hypergradient(lost, DESCENT, torch.tensor(0.5, dtype=torch.float64), steps=2)


def test_overflow_is_reported_with_the_step():
    quartic = problem(inner=lambda w, lam: (w - lam) ** 4)
    lam = torch.tensor(9.0, dtype=torch.float64)
    with pytest.raises(DivergenceError, match=r"step \d+ of T = 60: lower the inner step size"):
        hypergradient(quartic, GradientDescent(step_size=1.0), lam, steps=60)


def test_growth_is_noticed_before_it_overflows():
    lam = torch.tensor(1.0, dtype=torch.float64)
    fast = GradientDescent(step_size=3.0)  # |1 - η| = 2: the error doubles at each step
    assert math.isfinite(solve_inner(problem(), fast, lam, steps=50))
    with pytest.raises(DivergenceError, match=r"grows without bound at step 5[0-9] of T = 100"):
        solve_inner(problem(), fast, lam, steps=100)
    with pytest.raises(DivergenceError, match=Code.GROWING.value[:20]):
        hypergradient(problem(), fast, lam, steps=100)


@pytest.mark.parametrize("engine", [REVERSE, Unrolled(), Forward()], ids=str)
def test_a_step_size_that_warms_up_is_no_growth(engine):
    """Steps grow by 10²⁰, and so far as the objective goes they shrink from the second on."""
    warm = GradientDescent(step_size=lambda lam, t: 1e-20 if t == 1 else 0.1)
    lam = torch.tensor(1.0, dtype=torch.float64)
    grad = hypergradient(problem(), warm, lam, steps=4, engine=engine).grad
    assert grad.item() == pytest.approx((1 - 0.9**3) ** 2, rel=1e-12)


def test_growth_after_a_step_size_that_warms_up_is_noticed():
    warm = GradientDescent(step_size=lambda lam, t: 1e-9 if t == 1 else 3.0)
    lam = torch.tensor(1.0, dtype=torch.float64)
    with pytest.raises(DivergenceError, match=r"grows without bound at step 5[0-9] of T = 100"):
        solve_inner(problem(), warm, lam, steps=100)


def test_large_numbers_are_not_taken_for_an_overflow():
    large = Problem(
        inner=lambda w, lam: 0.5 * ((w - lam) ** 2).sum(),
        outer=lambda w, lam: 1e20 * w.sum(),
        init=torch.zeros_like,
    )
    lam, descent = torch.ones(3), GradientDescent(step_size=0.5)
    assert torch.allclose(hypergradient(large, descent, lam, steps=1).grad, 5e19 * lam)


def test_a_singular_objective_is_told_from_a_diverging_run():
    singular = problem(outer=lambda w, lam: torch.sqrt(w - w))
    lam = torch.tensor(1.0, dtype=torch.float64)
    with pytest.raises(DivergenceError, match="the hypergradient is not finite after 2 inner"):
        hypergradient(singular, DESCENT, lam, steps=2)


def test_a_run_that_starts_at_the_optimum_is_fine():
    still = problem(init=lambda lam: 1.0 * lam)
    lam = torch.tensor(2.0, dtype=torch.float64)
    assert hypergradient(still, DESCENT, lam, steps=5).grad == lam


@pytest.mark.process
def test_import_loads_no_framework():
    code = (
        "import sys, bilevel_core;print([m for m in ('torch', 'jax', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_docstring_examples():
    # The package exports a function of the same name as the module.
    module = importlib.import_module("bilevel_core.hypergradient")
    failed, tried = doctest.testmod(module, extraglobs={"GradientDescent": GradientDescent})
    assert (failed, tried) == (0, 4)


def test_float32_is_accepted():
    known = ridge()
    single = torch.as_tensor(known.lam, dtype=torch.float32)
    plain = Problem(
        inner=lambda w, lam: ((w - lam) ** 2).sum(),
        outer=lambda w, lam: (w**2).sum(),
        init=torch.zeros_like,
    )
    assert hypergradient(plain, DESCENT, single, steps=3).grad.dtype == torch.float32


class WritingDescent:
    """Gradient descent that scales the gradient that it is given in place."""

    def init(self, w, lam):
        return w

    def params(self, state):
        return state

    def step(self, gradient, state, lam, t):
        g = gradient(state)
        g.mul_(0.1)
        return state - g


def test_dynamics_may_write_into_the_gradient():
    """It is theirs; they are not taken for dynamics that draw at random."""
    lam = torch.tensor(2.0, dtype=torch.float64)
    for engine in (Reverse(), Forward(), Unrolled()):
        found, expected = (
            hypergradient(shift().problem, dynamics, lam, steps=5, engine=engine).grad
            for dynamics in (WritingDescent(), DESCENT)
        )
        torch.testing.assert_close(found, expected)
