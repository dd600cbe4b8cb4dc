"""Several bilevel problems that share λ: tasks, and the folds of cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, final

from bilevel_core.abstract import Backend, Dynamics, Engine
from bilevel_core.arrays import zeros
from bilevel_core.backends.find import backend_of
from bilevel_core.engines.reverse import Reverse
from bilevel_core.flow import Instance, parts
from bilevel_core.hypergradient import value_and_gradient
from bilevel_core.problem import Problem
from bilevel_core.results import raise_if_failed
from bilevel_core.tree import leaves, map_leaves
from bilevel_core.types import Array, Tree
from bilevel_core.validation import check_maps, checked_instance

__all__ = ["in_turn", "joint_problem", "mean_objective", "over_tasks", "sampled"]

REVERSE = Reverse()


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


def over_tasks(problem: Problem) -> Problem:
    """Return the problem of K tasks at once, whose data have a leading axis over them.

    w = (w¹, …, wᴷ) has that axis too, L = Σ_j Lʲ and E = (1/K) Σ_j Eʲ, by the framework's `vmap`.
    The gradient of L in wʲ is that of Lʲ alone, so dynamics that act on every entry for itself
    train each task as if it were by itself. Tasks of different shapes go to `joint_problem`.

    Args:
        problem: of one task, with data. Its `batches(t, data)`, if any, has the data of all tasks,
            and returns batches with the leading axis.

    Cost: that of all the tasks, in memory; in time less than one after another.
    """
    return replace(
        problem,
        inner=_Sum(problem.inner),
        outer=_Mean(problem.outer),
        init=_Each(problem.init),
    )


@final
@dataclass(frozen=True)
class _Sum:
    of_task: Callable[..., Array]

    def __call__(self, w: Tree, lam: Tree, data: Any) -> Array:
        each = backend_of(lam, "λ").mapped(lambda v, task: self.of_task(v, lam, task))
        return each(w, data).sum()


@final
@dataclass(frozen=True)
class _Mean:
    of_task: Callable[..., Array]

    def __call__(self, w: Tree, lam: Tree, data: Any) -> Array:
        each = backend_of(lam, "λ").mapped(lambda v, task: self.of_task(v, lam, task))
        return each(w, data).mean()


@final
@dataclass(frozen=True)
class _Each:
    of_task: Callable[..., Tree]

    def __call__(self, lam: Tree, data: Any) -> Tree:
        starts = backend_of(lam, "λ").mapped(lambda task: self.of_task(lam, task))(data)
        # Starts that are the same for all tasks share memory, and are to move apart.
        return map_leaves(lambda leaf: leaf + 0, starts)


def mean_objective(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    data: Tree,
    *,
    steps: int,
    engine: Engine = REVERSE,
    chunk: int | None = None,
) -> Array:
    """Return (1/K) Σ_j f_T(λ; data_j), which the framework differentiates by the engine.

    The gradient is computed with the value, `chunk` tasks at a time, so that memory is that of one
    chunk whatever K is. Where `torch.distributed` is running (`torchrun`), every process is given
    the same data, takes its share of the tasks, and has the mean over all of them.

    Args:
        problem: of one task, with data.
        dynamics: as for `over_tasks`.
        lam: λ.
        data: a tree of arrays (dict, list, tuple) with a leading axis over the K tasks.
        steps: T.
        engine: how w_T is differentiated.
        chunk: tasks at a time, at least 1; None takes all.

    Raises:
        ValueError: `chunk` is below 1, or there is no task; and whatever `solve_inner` raises.

    Cost: K hypergradients; memory of `chunk` of them.
    """
    count = _task_count(data)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 task, found {chunk}")
    together = over_tasks(problem)
    instance = checked_instance(together, dynamics, lam, data, None, steps)
    backend = instance.backend
    rank, processes = _place(backend)

    def run(lam: Tree, start: Tree, data: Any, keep: bool) -> tuple[Array, Tree]:
        del start
        mine = map_leaves(lambda rows: rows[rank::processes], data)
        found = None
        for part in _chunks(mine, chunk):
            here = replace(instance, lam=lam, data=part)
            share = _task_count(part) / count
            pair = map_leaves(lambda x, share=share: share * x, _value(here, engine, keep))
            found = pair if found is None else map_leaves(lambda a, b: a + b, found, pair)
        if found is None:  # more processes than tasks
            found = 0 * backend.namespace.ones_like(leaves(lam)[0]).sum(), zeros(lam, backend)
        value, grad = _summed(found, processes, backend)
        return value, grad

    def pull(
        lam: Tree, start: Tree, data: Any, memory: Tree, cotangent: Array
    ) -> tuple[Tree, Tree]:
        del lam, data
        return map_leaves(lambda g: cotangent * g, memory), start

    def probe(lam: Tree, start: Tree, data: Any) -> Tree:
        del start
        part = next(_chunks(data, 1))
        return parts(replace(instance, lam=lam, data=part), outer=True)

    value: Array = backend.differentiable(run, pull, probe, instance.lam, (), data)
    return value


def _value(instance: Instance, engine: Engine, keep: bool) -> tuple[Array, Tree]:
    """Return f_T of some tasks, and its gradient, or λ where it is not asked for."""
    flow, backend = instance.flow, instance.backend
    with backend.values_only():
        check_maps(instance, engine if keep else None)
        if not keep:
            found = engine.run(instance, keep=False)
            raise_if_failed(found.result, instance.steps)
            w = flow.dynamics.params(found.state)
            return flow.outer(w, instance.lam, instance.data), instance.lam
        computed = value_and_gradient(engine, instance)
    raise_if_failed(computed.result, instance.steps)
    return computed.value, computed.grad


def _task_count(data: Tree) -> int:
    counts = {len(leaf) for leaf in leaves(data)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"the arrays of the data must have one leading axis over the tasks, at least one, "
            f"found lengths {sorted(counts)}"
        )
    return counts.pop()


def _chunks(data: Tree, chunk: int | None) -> Any:
    """Yield the data of `chunk` tasks at a time."""
    count = len(leaves(data)[0])
    for first in range(0, count, chunk or max(1, count)):
        past = first + (chunk or count)
        yield map_leaves(lambda rows, first=first, past=past: rows[first:past], data)


def _place(backend: Backend) -> tuple[int, int]:
    """Return this process's rank and the number of processes; JAX has its own means."""
    distributed = getattr(backend.namespace, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _summed(found: Tree, processes: int, backend: Backend) -> Tree:
    """Return the sum over all processes, in every one of them."""
    if processes == 1:
        return found

    def total(leaf: Array) -> Array:
        leaf = leaf.clone()
        backend.namespace.distributed.all_reduce(leaf)
        return leaf

    return map_leaves(total, found)


def _at_least_one(problems: Sequence[Problem], caller: str) -> tuple[Problem, ...]:
    if not (tasks := tuple(problems)):
        raise ValueError(f"{caller} needs at least one problem, found none")
    return tasks
