"""Tasks taken in turn or sampled."""

from collections import Counter

import pytest
import torch

from bilevel_core import GradientDescent, Problem, hypergradient, in_turn, joint_problem, sampled

DESCENT = GradientDescent(step_size=0.25)


def task(target):
    """L = ½(w - λ)², E = (w - target)²: w_1 = λ/4, so ∇f_1 = (λ/4 - target) / 2."""
    return Problem(
        inner=lambda w, lam: 0.5 * (w - lam) ** 2,
        outer=lambda w, lam: (w - target) ** 2,
        init=torch.zeros_like,
    )


TASKS = [task(j) for j in range(5)]
LAM = torch.tensor(2.0, dtype=torch.float64)


def grad(problem):
    return hypergradient(problem, DESCENT, LAM, steps=1).grad.item()


def targets(problem, count):
    """The targets of the tasks that a joint problem is made of, from its outer objective."""
    w = [torch.tensor(0.0, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    slopes = torch.autograd.grad(count * problem.outer(tuple(w), LAM), w)
    return [round(-slope.item() / 2) for slope in slopes]


def test_in_turn_goes_round():
    draw = in_turn(TASKS)
    assert [draw(k) for k in range(12)] == [TASKS[k % 5] for k in range(12)]


def test_a_round_of_turns_has_the_mean_of_the_joint_problem():
    turns = [grad(in_turn(TASKS)(k)) for k in range(5)]
    assert sum(turns) / 5 == pytest.approx(grad(joint_problem(TASKS)), rel=1e-14)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_draw_is_without_replacement(count):
    for k in range(20):
        drawn = targets(sampled(TASKS, count, 0)(k), count)
        assert len(set(drawn)) == count
        assert set(drawn) <= set(range(5))


def test_a_draw_is_a_function_of_seed_and_hyper_iteration():
    draw, again, other = sampled(TASKS, 2, 7), sampled(TASKS, 2, 7), sampled(TASKS, 2, 8)
    forward = [targets(draw(k), 2) for k in range(15)]
    backward = [targets(again(k), 2) for k in reversed(range(15))]
    assert forward == backward[::-1]
    assert forward != [targets(other(k), 2) for k in range(15)]
    assert len({tuple(drawn) for drawn in forward}) > 3
    # Written down, so that a change of the draw between versions does not pass unseen.
    assert forward[:3] == [[0, 2], [0, 1], [2, 3]]


def test_the_same_tasks_are_the_same_problem():
    """So that JAX finds what it compiled, in whatever order they were drawn."""
    draw = sampled(TASKS[:3], 2, 7)
    drawn = [draw(k) for k in range(30)]
    assert len({id(problem) for problem in drawn}) == 3
    assert draw(0) is drawn[0]
    assert all(targets(problem, 2) == sorted(targets(problem, 2)) for problem in drawn)


def test_all_tasks_are_drawn_equally_often():
    drawn = Counter(TASKS.index(sampled(TASKS, 1, 3)(k)) for k in range(2000))
    # 400 expected each; the standard deviation is √(2000 · 0.2 · 0.8) < 18.
    assert all(abs(drawn[j] - 400) < 5 * 18 for j in range(5))


def test_the_draws_are_unbiased():
    pairs = [sampled(TASKS, 2, 1)(k) for k in range(400)]
    mean = sum(grad(pair) for pair in pairs) / 400
    # Standard error: variance of a target's mean over 2 of 5 is 0.75, times (1/2)² over 400.
    assert mean == pytest.approx(grad(joint_problem(TASKS)), abs=5 * 0.022)


def test_one_task_is_handed_on_as_it_is():
    stochastic = Problem(
        inner=lambda w, lam, batch: batch * (w - lam) ** 2,
        outer=lambda w, lam: w**2,
        init=torch.zeros_like,
        batches=lambda t: 0.5,
    )
    assert sampled([stochastic], 1, 0)(3) is stochastic
    assert in_turn([stochastic])(9) is stochastic
    with pytest.raises(ValueError, match="batches cannot be joined"):
        sampled([stochastic, stochastic], 2, 0)


def test_what_cannot_be_drawn_is_refused():
    for make in (in_turn, lambda tasks: sampled(tasks, 1, 0)):
        with pytest.raises(ValueError, match="needs at least one problem, found none"):
            make([])
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"count must be from 1 to 5.*found {count}"):
            sampled(TASKS, count, 0)
