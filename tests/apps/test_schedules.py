"""Outer learning rates: where they begin, peak and end."""

import itertools

import pytest

from bilevel_apps.training.optimizer import learning_rate

LR = 3e-3


def rates(schedule, steps):
    return [learning_rate(schedule, LR, k, steps) for k in range(steps)]


def test_constant():
    assert set(rates("constant", 50)) == {LR}


def test_paper_is_the_released_codes_decay():
    found = rates("paper", 50)
    assert found == [LR / (1 + 1e-5 * k) for k in range(50)]
    assert learning_rate("paper", LR, 100_000, 1) == LR / 2


def test_onecycle_rises_then_falls():
    found = rates("onecycle", 101)
    assert found[0] == pytest.approx(LR / 25, rel=1e-12)
    assert found[30] == pytest.approx(LR, rel=1e-12)
    assert found[-1] == pytest.approx(1e-5 * LR, rel=1e-9)
    assert all(a < b for a, b in itertools.pairwise(found[:31]))
    assert all(a > b for a, b in itertools.pairwise(found[30:]))


def test_onecycle_is_half_a_cosine_on_each_side():
    found = rates("onecycle", 201)
    assert found[30] == pytest.approx(LR * (1 + 1 / 25) / 2, rel=1e-12)
    assert found[130] == pytest.approx(LR * (1 + 1e-5) / 2, rel=1e-12)


def test_cosine_falls_from_the_first_rate_to_the_last():
    found = rates("cosine", 101)
    assert found[0] == pytest.approx(LR, rel=1e-12)
    assert found[50] == pytest.approx(LR * (1 + 1e-5) / 2, rel=1e-12)
    assert found[-1] == pytest.approx(1e-5 * LR, rel=1e-9)
    assert all(a > b for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("schedule", ["constant", "paper", "cosine", "onecycle"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_have_a_rate(schedule, steps):
    assert all(0 < rate <= LR for rate in rates(schedule, steps))


def test_a_run_of_one_step_is_no_standstill():
    assert learning_rate("onecycle", LR, 0, 1) >= LR / 25
