"""Several bilevel problems that share λ: tasks, and the folds of cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256

from bilevel_core.problem import Problem
from bilevel_core.types import Array, Tree

__all__ = ["in_turn", "joint_problem", "sampled"]


def joint_problem(problems: Sequence[Problem]) -> Problem:
    """Return the problem of all tasks together: w = (w¹, …, wᴷ), L = Σ_j Lʲ, E = (1/K) Σ_j Eʲ.

    The gradient of L in wʲ is that of Lʲ alone, so gradient descent trains each task as if it were
    by itself. For K-fold cross-validation give the K hold-out problems of the folds; `in_turn` and
    `sampled` take the tasks one after another or at random instead.

    Args:
        problems: the K tasks, at least one.

    Cost: that of all the tasks, in time and memory.

    Raises:
        ValueError: no problem is given, or one has batches of its own.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 3 and 4 and Appendix B.
    """
    tasks = _at_least_one(problems, "joint_problem")
    if any(task.batches is not None for task in tasks):
        raise ValueError("a problem with batches cannot be joined: sample within `inner` instead")

    def inner(w: Tree, lam: Tree) -> Array:
        return sum(task.inner(v, lam) for task, v in zip(tasks, w, strict=True))

    def outer(w: Tree, lam: Tree) -> Array:
        total = sum(task.outer(v, lam) for task, v in zip(tasks, w, strict=True))
        return total / len(tasks)

    return Problem(inner=inner, outer=outer, init=lambda lam: tuple(t.init(lam) for t in tasks))


def in_turn(problems: Sequence[Problem]) -> Callable[[int], Problem]:
    """Return k -> problem k mod K, for `minimize`: one task a hyper-iteration, over and over.

    The mean of K hypergradients that follow each other at one λ is that of the joint problem.

    Args:
        problems: the K tasks, at least one.

    Cost: that of one task a hyper-iteration.

    Raises:
        ValueError: no problem is given.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Appendix B, whose "stochastically" this is with the tasks in order.
    """
    tasks = _at_least_one(problems, "in_turn")
    return lambda k: tasks[k % len(tasks)]


def sampled(problems: Sequence[Problem], count: int, seed: int) -> Callable[[int], Problem]:
    """Return k -> the joint problem of `count` tasks drawn without replacement, for `minimize`.

    Every set of `count` tasks is as likely as any other, so the hypergradient is an unbiased
    estimate of that of all tasks together. The draw is a function of (seed, k, K) alone, the same
    on every machine. One task is handed on as it is, and may have batches. Tasks that were drawn
    lately are the same problem again, so that JAX finds it compiled.

    Args:
        problems: the K tasks, at least one.
        count: tasks a hyper-iteration, from 1 to K.
        seed: any integer.

    Cost: that of `count` tasks a hyper-iteration, and K hashes to draw them.

    Raises:
        ValueError: no problem is given, `count` is not from 1 to K, or problems with batches would
            have to be joined.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Appendix B, "stochastically".
    """
    tasks = _at_least_one(problems, "sampled")
    if not 1 <= count <= len(tasks):
        raise ValueError(f"count must be from 1 to {len(tasks)}, the problems given, found {count}")
    if count > 1:
        joint_problem(tasks)  # refuses now what it would refuse in some later draw

    @lru_cache
    def together(*chosen: int) -> Problem:
        return joint_problem([tasks[j] for j in chosen])

    def draw(k: int) -> Problem:
        # Sorting by independent hashes shuffles, with no generator's state to keep.
        order = sorted(range(len(tasks)), key=lambda j: sha256(f"{seed} {k} {j}".encode()).digest())
        return tasks[order[0]] if count == 1 else together(*sorted(order[:count]))

    return draw


def _at_least_one(problems: Sequence[Problem], caller: str) -> tuple[Problem, ...]:
    if not (tasks := tuple(problems)):
        raise ValueError(f"{caller} needs at least one problem, found none")
    return tasks
