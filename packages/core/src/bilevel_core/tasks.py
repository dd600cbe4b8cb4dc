"""Several bilevel problems that share λ as one: tasks, and the folds of cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

from bilevel_core.abstract import Array, Tree
from bilevel_core.problem import Problem

__all__ = ["joint_problem"]


def joint_problem(problems: Sequence[Problem]) -> Problem:
    """Return the problem of all tasks together: w = (w¹, …, wᴷ), L = Σ_j Lʲ, E = (1/K) Σ_j Eʲ.

    The gradient of L in wʲ is that of Lʲ alone, so gradient descent trains each task as if it were
    by itself. For K-fold cross-validation give the K hold-out problems of the folds. To take the
    tasks one after another or at random instead, hand `minimize` a function of the hyper-iteration
    that returns one problem or the joint problem of some.

    Cost: that of all the tasks, in time and memory.

    Raises:
        ValueError: no problem is given, or one has batches of its own.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 3 and 4 and Appendix B.
    """
    tasks = tuple(problems)
    if not tasks:
        raise ValueError("joint_problem needs at least one problem, found none")
    if any(task.batches is not None for task in tasks):
        raise ValueError("a problem with batches cannot be joined: sample within `inner` instead")

    def inner(w: Tree, lam: Tree) -> Array:
        return sum(task.inner(v, lam) for task, v in zip(tasks, w, strict=True))

    def outer(w: Tree, lam: Tree) -> Array:
        total = sum(task.outer(v, lam) for task, v in zip(tasks, w, strict=True))
        return total / len(tasks)

    return Problem(inner=inner, outer=outer, init=lambda lam: tuple(t.init(lam) for t in tasks))
