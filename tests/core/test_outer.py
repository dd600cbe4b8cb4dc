"""The outer loop on problems whose minimiser is known."""

from functools import partial

import pytest
import torch

from bilevel_core import GradientDescent, Problem, hypergradient, minimize
from problems import ridge, shift

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
