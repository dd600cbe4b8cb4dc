"""What each framework adds: jit and compiled loops in JAX, vmap in both, and no mixtures."""

import functools
import random
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from bilevel_core import (
    Checkpointed,
    Code,
    Custom,
    Dense,
    DivergenceError,
    Engine,
    Exact,
    FixedPoint,
    Forward,
    GradientDescent,
    HeavyBall,
    Hypergradient,
    Implicit,
    Neumann,
    Problem,
    Reverse,
    Spectral,
    Truncated,
    Unrolled,
    arrays,
    hypergradient,
    minimize,
    minimize_online,
)
from bilevel_core.backends.find import backend_of
from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree
from frameworks import JAX, TORCH, Framework, crossed, each_framework, jax, needs_jax
from problems import ridge, shift

RIDGE = ridge()
TRACEABLE: list[Engine] = [
    Reverse(),
    Unrolled(),
    Checkpointed(budget=2),
    Truncated(horizon=3),
    Forward(),
    Forward(chunk=2),
]


@needs_jax
@pytest.mark.parametrize(
    ("engine", "steps"), [*((engine, 7) for engine in TRACEABLE), (Reverse(), 0), (Forward(), 1)]
)
def test_jit_gives_what_an_ordinary_call_gives(engine, steps):
    descent = HeavyBall(step_size=0.05, momentum=0.3)

    def run(lam: Tree) -> Hypergradient:
        return hypergradient(RIDGE.on(JAX), descent, lam, steps=steps, engine=engine)

    lam = JAX.arrays(RIDGE.lam)
    plain, compiled = run(lam), jax.jit(run)(lam)
    assert compiled.result.code is Code.UNCHECKED
    assert plain.result.code is Code.SUCCESS
    for name in ("value", "grad"):
        np.testing.assert_allclose(getattr(compiled, name), getattr(plain, name), rtol=1e-12)


@needs_jax
def test_a_long_run_compiles_as_fast_as_a_short_one():
    """The compiled code holds loops and not T copies of a step."""
    problem = RIDGE.on(JAX)  # made outside of the trace: its data are kept

    def size(steps: int) -> int:
        descent = GradientDescent(step_size=0.1)

        def grad(lam: Tree) -> Tree:
            return hypergradient(problem, descent, lam, steps=steps).grad

        return len(str(jax.make_jaxpr(grad)(JAX.arrays(RIDGE.lam))).splitlines())

    size(2)  # the checks are a part of the first trace alone
    assert size(2000) == size(20)


@needs_jax
def test_a_run_that_diverges_within_jit_shows_in_the_numbers():
    lam = JAX.arrays(shift().lam)
    problem, steep = shift().on(JAX), GradientDescent(step_size=1e6)
    with pytest.raises(DivergenceError):
        hypergradient(problem, steep, lam, steps=100)
    traced = jax.jit(lambda lam: hypergradient(problem, steep, lam, steps=100))(lam)
    assert not np.isfinite(traced.grad)


@needs_jax
@pytest.mark.parametrize(
    "step_size",
    [
        lambda lam, t: 0.1 if t <= 3 else 0.05,
        lambda lam, t: [0.1, 0.2, 0.3, 0.4, 0.5][t - 1],
        lambda lam, t: float(np.sqrt(t)) / 20,
    ],
    ids=["comparison", "list", "numpy"],
)
def test_functions_that_look_at_the_step_are_run_without_compiling(step_size):
    descent = GradientDescent(step_size=step_size)
    lam = RIDGE.lam
    for engine in (Reverse(), Checkpointed(budget=2), Forward()):
        with pytest.warns(RuntimeWarning, match="slower by orders of magnitude"):
            found = hypergradient(RIDGE.on(JAX), descent, JAX.arrays(lam), steps=5, engine=engine)
        reference = hypergradient(RIDGE.problem, descent, lam, steps=5, engine=engine)
        np.testing.assert_allclose(found.grad, reference.grad, rtol=1e-10)


TABLE = {t: 0.1 * t for t in range(1, 7)}
LOOKING = {
    "a key": lambda t: TABLE[t],
    "a number as text": lambda t: float(f"{t}") / 10,
    "a generator of NumPy": lambda t: np.random.default_rng(t).random(),
    "a generator of numbers": lambda t: np.random.default_rng([0, t]).random(),
    "a generator": lambda t: random.Random(t).random(),
    "a cache": functools.lru_cache(lambda t: 0.1 * t),
    "an int": lambda t: int(t) / 10,
    "a comparison": lambda t: 0.3 if t < 3 else 0.5,
    "an array of NumPy": lambda t: np.linspace(0.1, 1, 7)[t],
    "a range": lambda t: sum(range(t)) / 10,
}
READING = {
    "a seed of text": lambda t: random.Random(f"seed 0, step {t}").random(),
    "a seed of text after arithmetic": lambda t: random.Random(str(2 * t - 1)).random(),
    "a seed of an epoch": lambda t: random.Random(f"epoch {t // 3}, step {t % 3}").random(),
    "text of a bit": lambda t: random.Random(f"{t & 1}").random(),
    "text of a comparison": lambda t: random.Random(f"{t < 3}").random(),
    "text of a quotient and rest": lambda t: random.Random(f"{divmod(t, 2)}").random(),
    "a key of text with a default": lambda t: {"3": 0.9}.get(str(t), 0.4),
}


def of_batches(batches, framework: Framework, engine: Engine) -> Hypergradient:
    problem = Problem(
        inner=lambda w, lam, batch: 0.5 * (w - lam * batch) ** 2,
        outer=lambda w, lam: 0.5 * w**2,
        init=lambda lam: 0 * lam,
        batches=batches,
    )
    descent, lam = GradientDescent(step_size=0.5), framework.arrays(shift().lam)
    return hypergradient(problem, descent, lam, steps=5, engine=engine)


@needs_jax
@pytest.mark.parametrize("batches", LOOKING.values(), ids=LOOKING)
@pytest.mark.parametrize("engine", [Reverse(), Forward()], ids=str)
def test_batches_that_look_at_the_step_are_those_of_the_step(batches, engine):
    with pytest.warns(RuntimeWarning, match="slower by orders of magnitude"):
        found = of_batches(batches, JAX, engine)
    reference = of_batches(batches, TORCH, engine)
    np.testing.assert_allclose(found.value, reference.value, rtol=1e-12)
    np.testing.assert_allclose(found.grad, reference.grad, rtol=1e-12)


@needs_jax
@pytest.mark.parametrize("batches", READING.values(), ids=READING)
def test_batches_that_read_the_step_as_text_are_refused(batches):
    with pytest.raises(ValueError, match="compiles as a constant, such as its text"):
        of_batches(batches, JAX, Reverse())


ROWS = np.linspace(0.1, 2.0, 20).reshape(10, 2)
COMPUTING = {
    "rows": lambda t: JAX.arrays(ROWS)[3 * (t % 3) - 1],
    "a slice": lambda t: jax.lax.dynamic_slice_in_dim(JAX.arrays(ROWS), t, 2),
    "a key": lambda t: jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (2,)),
    "arithmetic": lambda t: 2.0 ** (1 - t) + 1 / np.float64(3) * t // 2 - (t + 1) % 2,
    "functions": lambda t: JAX.xp.where((t > 2) & (t != 4), JAX.xp.sqrt(t), -abs(-t)),
}


@needs_jax
@pytest.mark.parametrize("batches", COMPUTING.values(), ids=COMPUTING)
def test_batches_that_compute_with_the_step_are_compiled(batches):
    calls = []

    def counted(t):
        calls.append(t)
        return batches(t)

    def value(batches, steps):
        problem = Problem(
            inner=lambda w, lam, batch: 0.5 * ((w - lam * batch) ** 2).sum(),
            outer=lambda w, lam: 0.5 * w**2,
            init=lambda lam: 0 * lam,
            batches=batches,
        )
        lam = JAX.arrays(shift().lam)
        return hypergradient(problem, GradientDescent(step_size=0.3), lam, steps=steps).value

    w, found = 0.0, value(counted, 8)
    for t in range(1, 9):
        w = w - 0.3 * (w - 1.7 * np.asarray(batches(t))).sum()
    np.testing.assert_allclose(found, 0.5 * w**2, rtol=1e-12)
    few = len(calls)
    calls.clear()
    value(counted, 40)
    assert len(calls) == few


@needs_jax
@pytest.mark.parametrize("engine", [Reverse(), Unrolled(), Forward()], ids=str)
def test_dynamics_that_cannot_be_hashed_work(engine):
    @dataclass
    class Weighted:
        weights: Any

        def init(self, w, lam):
            return w

        def step(self, gradient, state, lam, t):
            return state - self.weights * gradient(state)

        def params(self, state):
            return state

    weights = np.linspace(0.05, 0.1, len(RIDGE.lam))
    found, reference = (
        hypergradient(
            RIDGE.on(f), Weighted(f.arrays(weights)), f.arrays(RIDGE.lam), steps=4, engine=engine
        )
        for f in (JAX, TORCH)
    )
    np.testing.assert_allclose(found.grad, reference.grad, rtol=1e-10)


@each_framework
@pytest.mark.parametrize(
    "engine",
    [Reverse(), Unrolled(), Checkpointed(), Forward(), Implicit(), Spectral(), Exact()],
    ids=str,
)
def test_dicts_of_other_kinds_are_dicts(engine, framework: Framework):
    """JAX tells them apart, and sorts the keys of a plain one."""
    problem = Problem(
        inner=lambda w, lam: 0.5 * (w["a"] - lam["x"]) ** 2 + 0.5 * (w["b"] - lam["x"]) ** 2,
        outer=lambda w, lam: 0.5 * w["a"] ** 2 + w["b"],
        init=lambda lam: OrderedDict(b=0 * lam["x"], a=0 * lam["x"]),
    )
    lam = OrderedDict(x=framework.arrays(torch.tensor(1.5)))
    descent = GradientDescent(step_size=0.5)
    grad = hypergradient(problem, descent, lam, steps=60, engine=engine).grad
    assert float(grad["x"]) == pytest.approx(2.5, rel=1e-12)


@needs_jax
def test_optax_and_torch_optimisers_walk_the_same_way():
    import optax

    descent = GradientDescent(step_size=RIDGE.eta)
    runs = [
        minimize(RIDGE.on(f), descent, f.arrays(RIDGE.lam), steps=9, outer_steps=5, optimizer=o)
        for f, o in ((TORCH, lambda p: torch.optim.SGD(p, lr=0.5)), (JAX, optax.sgd(0.5)))
    ]
    np.testing.assert_allclose(runs[0].values, runs[1].values, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(runs[1].lam), runs[0].lam.numpy(), rtol=1e-12)


@needs_jax
@pytest.mark.parametrize(
    ("framework", "optimizer", "words"),
    [
        (JAX, lambda p: torch.optim.SGD(p, lr=0.5), "optimizer must be an optax transformation"),
        (TORCH, lambda p: "adam", "optimizer must make a torch.optim.Optimizer"),
        (
            TORCH,
            torch.optim.SGD([torch.ones(1)], lr=0.1),
            "optimizer is a SGD: give what makes it from a list of tensors",
        ),
        (TORCH, torch.optim.LBFGS, "LBFGS evaluates .* within a step.*give one that takes"),
    ],
    ids=["jax", "torch", "an optimiser", "a closure"],
)
def test_optimisers_of_another_kind_are_refused(framework: Framework, optimizer, words):
    known, lam = shift(), framework.arrays(shift().lam)
    with pytest.raises(TypeError, match=words):
        minimize(
            known.on(framework),
            GradientDescent(step_size=0.1),
            lam,
            steps=1,
            outer_steps=1,
            optimizer=optimizer,
        )


@pytest.mark.parametrize(
    ("engine", "framework"),
    crossed(TRACEABLE, on_jax=[([Reverse(), Checkpointed(budget=2), Forward()],)]),
    ids=str,
)
def test_vmap_takes_many_problems_at_once(engine, framework: Framework):
    """A batch of λ and of data: each row is the hypergradient that it has by itself."""
    descent, problem = GradientDescent(step_size=0.05), RIDGE.on(framework)
    lams = framework.arrays(torch.stack([RIDGE.lam, 0.5 * RIDGE.lam]))
    shifts = framework.arrays(torch.tensor([0.0, 1.0]))

    def grad(lam: Tree, shifted: Tree) -> Tree:
        moved = replace(problem, outer=lambda w, lam: problem.outer(w + shifted, lam))
        return hypergradient(moved, descent, lam, steps=3, engine=engine).grad

    vmap = torch.func.vmap if framework is TORCH else jax.vmap
    together = framework.tensors(vmap(grad)(lams, shifts))
    for i in range(2):
        alone = framework.tensors(grad(lams[i], shifts[i]))
        assert torch.allclose(together[i], alone, rtol=1e-10, atol=1e-13)


@each_framework
@pytest.mark.parametrize(
    ("numbers", "norm"),
    [
        ([3e20, 4e20], 5e20),
        ([3e-25, 4e-25], 5e-25),
        ([3.0, 4.0], 5.0),
        ([0.0, 0.0], 0.0),
        ([], 0.0),
        ([3e-25, np.inf], np.inf),
        ([0.0, np.nan], np.nan),
        ([np.inf, np.nan], np.nan),
    ],
)
def test_a_norm_neither_overflows_nor_vanishes(numbers, norm, framework: Framework):
    leaf = framework.xp.asarray(np.asarray(numbers, dtype=np.float32))
    lam = framework.arrays(torch.zeros(1))
    assert arrays.norm({"a": leaf, "b": lam}, backend_of(lam, "λ")) == pytest.approx(
        norm, rel=1e-6, abs=0.0, nan_ok=True
    )


OF_TWO_TYPES = [
    Reverse(),
    Unrolled(),
    Forward(chunk=3),
    Implicit(),
    Implicit(solver=Dense()),
    Implicit(solver=FixedPoint(step_size=np.float64(0.5))),
    Implicit(solver=Neumann(step_size=np.float64(0.5))),
    Exact(),
    Spectral(),
]


@pytest.mark.parametrize(
    ("engine", "framework"),
    crossed(OF_TWO_TYPES, on_jax=[([Reverse(), Forward(chunk=3), Implicit(), Exact()],)]),
    ids=str,
)
def test_each_leaf_of_the_gradient_is_of_its_hyperparameters_type(engine, framework: Framework):
    def single(tree: Tree) -> Tree:
        return map_leaves(lambda x: framework.xp.asarray(x, dtype=framework.xp.float32), tree)

    half = Problem(
        inner=lambda w, lam: (
            0.5 * ((w["x"] - lam["a"]) ** 2).sum() + 0.5 * ((w["y"] - 3 * lam["b"]) ** 2).sum()
        ),
        outer=lambda w, lam: 0.5 * (w["x"] ** 2).sum() + 0.5 * (w["y"] ** 2).sum(),
        init=lambda lam: {"x": 0 * lam["a"], "y": 0 * lam["b"]},
    )
    lam = {
        "a": single(framework.arrays(torch.tensor([1.0, 2.0]))),
        "b": framework.arrays(torch.tensor([1.0, -2.0])),
    }
    descent = GradientDescent(step_size=0.5)
    grad = hypergradient(half, descent, lam, steps=60, engine=engine).grad
    for name, factor in (("a", 1), ("b", 9)):
        assert grad[name].dtype == lam[name].dtype
        np.testing.assert_allclose(grad[name], factor * lam[name], rtol=1e-6)


@each_framework
def test_single_hyperparameters_of_double_weights_are_minimised(framework: Framework):
    zeros = framework.arrays(torch.zeros(3))
    problem = Problem(
        inner=lambda w, lam: 0.5 * ((w - lam) ** 2).sum(),
        outer=lambda w, lam: 0.5 * (w**2).sum(),
        init=lambda lam: zeros,
    )
    lam = framework.xp.ones(3, dtype=framework.xp.float32)
    descent, sgd = GradientDescent(step_size=0.5), partial(torch.optim.SGD, lr=0.5)
    if framework is JAX:
        sgd = pytest.importorskip("optax").sgd(0.5)
    for run in (
        minimize(problem, descent, lam, steps=5, outer_steps=9, optimizer=sgd, engine=Forward()),
        minimize_online(problem, descent, lam, steps=9, optimizer=sgd),
    ):
        assert run.lam.dtype == lam.dtype
        assert run.values[-1] < run.values[0]


@each_framework
@pytest.mark.parametrize("engine", [Reverse(), Forward(), Forward(chunk=2)], ids=str)
def test_no_hyperparameter_has_a_gradient_of_none(engine, framework: Framework):
    """λ may be a list that is sometimes empty."""
    ones = framework.arrays(torch.ones(2))
    problem = Problem(
        inner=lambda w, lam: (w**2).sum() + lam.sum() * w.sum(),
        outer=lambda w, lam: (w**2).sum() + lam.sum(),
        init=lambda lam: ones,
    )
    descent, lam = GradientDescent(step_size=0.25), framework.arrays(torch.zeros(0))
    found = hypergradient(problem, descent, lam, steps=2, engine=engine)
    assert found.grad.shape == (0,)
    assert float(found.value) == 2 * 0.25**2


@pytest.mark.parametrize(
    ("engine", "steps", "framework"),
    crossed(
        [Reverse(), Forward(), Exact()],
        [0, 1, 3],
        on_jax=[([Reverse(), Forward(), Exact()], [3]), ([Reverse()], [0])],
    ),
    ids=str,
)
def test_a_hyperparameter_that_nothing_uses_is_refused(engine, steps, framework: Framework):
    known = RIDGE.on(framework)
    problem = Problem(
        inner=lambda w, lam: known.inner(w, lam["penalty"]),
        outer=lambda w, lam: known.outer(w, lam["penalty"]),
        init=lambda lam: 0.1 * lam["penalty"],
    )
    lam = framework.arrays({"penalty": RIDGE.lam, "forgotten": torch.ones(2)})
    with pytest.raises(ValueError, match=re.escape("nothing uses λ['forgotten']")):
        hypergradient(problem, GradientDescent(step_size=0.1), lam, steps=steps, engine=engine)


@pytest.mark.filterwarnings("ignore:batches, dynamics or objectives look at t:RuntimeWarning")
@each_framework
@pytest.mark.filterwarnings(
    "ignore:batches, dynamics or objectives look at t"
)  # a list has no traced index
def test_hyperparameters_with_a_derivative_that_happens_to_be_zero_are_not_refused(
    framework: Framework,
):
    """One used in the last step only, and one whose effect vanishes at this point."""
    problem = Problem(
        inner=lambda w, lam: (w * lam["scale"]) ** 2 / 2,
        outer=lambda w, lam: w**2,
        init=lambda lam: 0 * lam["scale"],
    )
    dynamics = GradientDescent(step_size=lambda lam, t: lam["sizes"][t - 1])
    sizes = [torch.tensor(0.1 * t) for t in range(1, 4)]
    lam = framework.arrays({"scale": torch.tensor(2.0), "sizes": sizes})
    grad = hypergradient(problem, dynamics, lam, steps=3).grad
    assert float(grad["scale"]) == 0.0
    assert [float(g) for g in grad["sizes"]] == [0.0, 0.0, 0.0]


@needs_jax
def test_arrays_of_two_frameworks_are_refused():
    problem, descent = shift().problem, GradientDescent(step_size=0.1)
    mixed = {"a": torch.zeros(2), "b": JAX.arrays(torch.zeros(2))}
    with pytest.raises(TypeError, match=r"λ\['b'\] is a jax array, but λ begins with torch arrays"):
        hypergradient(problem, descent, mixed, steps=1)
    foreign = replace(problem, init=lambda lam: JAX.arrays(torch.zeros(())))
    lam = torch.tensor(1.0, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"w_0 = init\(λ\) is a .*, but λ is made of torch arrays"):
        hypergradient(foreign, descent, lam, steps=1)


@each_framework
def test_a_step_that_changes_the_dict_it_is_given_is_refused(framework: Framework):
    def update(w, lam, t):
        w["a"] = 0.5 * w["a"]
        return w

    problem = Problem(
        inner=lambda w, lam: w["a"] * lam,
        outer=lambda w, lam: w["a"] ** 2,
        init=lambda lam: {"a": 2 * lam},
    )
    lam = framework.arrays(torch.tensor(1.0))
    with pytest.raises(ValueError, match="write into their state"):
        hypergradient(problem, Custom(update=update), lam, steps=2)


@pytest.mark.parametrize("engine", [Reverse(), Unrolled(), Forward()], ids=str)
def test_leaves_that_are_one_tensor_have_derivatives_of_their_own(engine):
    """w_0 may hold the same tensor twice, or one leaf that follows from another."""
    problem = Problem(
        inner=lambda w, lam: (w["a"] * w["b"]) + lam * w["a"] ** 2,
        outer=lambda w, lam: w["a"] + 3 * w["b"],
        init=lambda lam: {"a": lam, "b": lam},
    )
    lam, eta = torch.tensor(0.7, dtype=torch.float64), 0.1
    found = hypergradient(problem, GradientDescent(step_size=eta), lam, steps=1, engine=engine)
    # a_1 = λ - η (λ + 2λ²), b_1 = λ - η λ
    expected = (1 - eta * (1 + 4 * lam)) + 3 * (1 - eta)
    assert torch.allclose(found.grad, expected, rtol=1e-12)
