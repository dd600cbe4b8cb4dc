"""`check_hypergradient`: what is right passes, and each of several mistakes is found."""

import doctest
import importlib

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from bilevel_core import (
    Checkpointed,
    Direct,
    Exact,
    Forward,
    GradientDescent,
    Implicit,
    Problem,
    Reverse,
    Truncated,
    Unrolled,
    check_hypergradient,
)
from frameworks import crossed
from problems import ridge, shift

DESCENT = GradientDescent(step_size=0.1)


@pytest.mark.parametrize(
    ("engine", "framework"),
    crossed([Reverse(), Unrolled(), Checkpointed(), Forward()], on_jax=[([Reverse()],)]),
    ids=str,
)
def test_what_is_right_passes(engine, framework):
    known = ridge()
    lam = framework.arrays(known.lam)
    dynamics = GradientDescent(step_size=known.eta)
    found = check_hypergradient(known.on(framework), dynamics, lam, steps=20, engine=engine)
    assert found.passes
    assert found.error < 1e-7
    assert [row.leaf for row in found.directions] == ["λ"] * 3


@pytest.mark.parametrize("engine", [Exact(), Implicit()], ids=repr)
def test_engines_of_the_limit(engine):
    known = ridge()
    dynamics = GradientDescent(step_size=known.eta)
    assert check_hypergradient(known.problem, dynamics, known.lam, steps=3000, engine=engine).passes


@pytest.mark.parametrize("engine", [Direct(), Truncated(horizon=2)], ids=repr)
def test_what_an_engine_leaves_out_is_found(engine):
    known = ridge()
    dynamics = GradientDescent(step_size=known.eta)
    found = check_hypergradient(known.problem, dynamics, known.lam, steps=20, engine=engine)
    assert not found.passes
    assert str(found).splitlines()[-1].startswith("FAILS: ")


def logistic(inner_penalty):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64, generator=draw)
    y = (x[:, 0] > 0).double()

    def inner(w, lam):
        loss = binary_cross_entropy_with_logits(x[:20] @ w, y[:20])
        return loss + inner_penalty(w, lam)

    return Problem(
        inner=inner,
        outer=lambda w, lam: binary_cross_entropy_with_logits(x[20:] @ w, y[20:]),
        init=lambda lam: torch.zeros(5, dtype=torch.float64),
    )


def test_a_part_that_is_detached_is_found_and_named():
    """The other leaf of λ is right, so that no error is raised."""
    lam = {name: torch.zeros(5, dtype=torch.float64) - 2 for name in ("a", "b")}

    def penalty(w, lam):
        return (lam["a"].exp() * w**2).sum() + (
            (lam["b"].detach().exp() + lam["b"].exp()) * w**2
        ).sum()

    found = check_hypergradient(logistic(penalty), DESCENT, lam, steps=30, directions=2)
    assert [row.leaf for row in found.directions] == ["λ['a']"] * 2 + ["λ['b']"] * 2
    assert max(row.error for row in found.directions[:2]) < 1e-7
    assert min(row.error for row in found.directions[2:]) > 1e-3
    assert found.error == max(row.error for row in found.directions)


def test_single_precision_has_its_own_tolerance():
    lam = torch.full((5,), -2.0)
    problem = shift().problem
    found = check_hypergradient(problem, DESCENT, lam[:1].sum(), steps=5)
    assert found.passes
    assert found.tolerance == pytest.approx(torch.finfo(torch.float32).eps ** 0.25)
    assert not check_hypergradient(problem, DESCENT, lam[0], steps=5, tolerance=0.0).passes


def test_the_same_seed_gives_the_same_directions():
    known = ridge()
    dynamics = GradientDescent(step_size=known.eta)
    one, same, other = (
        check_hypergradient(known.problem, dynamics, known.lam, steps=3, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


def test_at_least_one_direction():
    with pytest.raises(ValueError, match="directions must be at least 1, found 0"):
        check_hypergradient(shift().problem, DESCENT, shift().lam, steps=1, directions=0)


def test_the_example():
    failed, tried = doctest.testmod(importlib.import_module("bilevel_core.check_hypergradient"))
    assert tried
    assert not failed


def test_the_precision_is_that_of_the_least_precise_array():
    x = torch.linspace(-1, 1, 20)
    problem = Problem(
        inner=lambda w, lam: ((x * w - x.sin()) ** 2).mean() + lam.exp() * w**2,
        outer=lambda w, lam: ((x * w - x) ** 2).mean(),
        init=lambda lam: torch.zeros(()),
    )
    lam = torch.tensor(-1.0, dtype=torch.float64)
    found = check_hypergradient(problem, DESCENT, lam, steps=30)
    assert found.tolerance == pytest.approx(torch.finfo(torch.float32).eps ** 0.25)
    assert found.passes


def test_steps_are_as_small_as_the_leaf():
    """A penalty of 1e-6 under a logarithm stays above zero."""
    problem = logistic(lambda w, lam: (lam.log().exp() * w**2).sum())
    lam = torch.full((5,), 1e-6, dtype=torch.float64)
    assert check_hypergradient(problem, DESCENT, lam, steps=30).passes


def test_a_leaf_without_entries_has_no_direction():
    problem = logistic(lambda w, lam: (lam["a"].exp() * w**2).sum() + lam["none"].sum())
    lam = {"a": torch.zeros(5, dtype=torch.float64), "none": torch.zeros(0, dtype=torch.float64)}
    found = check_hypergradient(problem, DESCENT, lam, steps=3)
    assert [row.leaf for row in found.directions] == ["λ['a']"] * 3
    assert found.passes


def test_an_outer_objective_that_draws_is_found():
    draw = torch.Generator().manual_seed(0)
    problem = Problem(
        inner=lambda w, lam: (w - lam) ** 2,
        outer=lambda w, lam: w**2 * torch.rand((), generator=draw, dtype=torch.float64),
        init=torch.zeros_like,
    )
    lam = torch.tensor(1.0, dtype=torch.float64)
    assert not check_hypergradient(problem, DESCENT, lam, steps=3).passes
