"""The outer loop: minimise f_T over λ with any optimiser of the framework."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, final

from bilevel_core.abstract import Dynamics, Engine
from bilevel_core.arrays import norm
from bilevel_core.constraints.reparametrization import coordinates
from bilevel_core.engines.reverse import Reverse
from bilevel_core.flow import Instance
from bilevel_core.hypergradient import checked_run, run_engine
from bilevel_core.problem import Problem
from bilevel_core.results import ConvergenceError, DivergenceError, Hypergradient
from bilevel_core.stopping import OuterRecord, StoppingRule
from bilevel_core.types import Tree

__all__ = ["OuterRun", "OuterStep", "minimize"]

REVERSE = Reverse()


@final
@dataclass(frozen=True, kw_only=True)
class OuterStep:
    """One hyper-iteration: f_T and ‖∇f_T‖ at the λ *before* the update, and that λ."""

    index: int
    value: float
    grad_norm: float
    lam: Tree


@final
@dataclass(frozen=True, kw_only=True)
class OuterRun:
    """What an outer loop leaves.

    Attributes:
        lam: λ after the last update; its value was not computed unless the run was stopped.
        best_lam: λ of the lowest value seen, the first of them; the start where there is none.
        history: one record a hyper-iteration.
        stopped: why the run ended: it was through, or the rule or the callback said so.
    """

    lam: Tree
    best_lam: Tree
    history: tuple[OuterRecord, ...]
    stopped: Literal["outer_steps", "stop", "callback"]

    @property
    def values(self) -> tuple[float, ...]:
        """f_T of every hyper-iteration."""
        return tuple(record.value for record in self.history)

    @property
    def grad_norms(self) -> tuple[float, ...]:
        """‖∇f_T‖ of every hyper-iteration."""
        return tuple(record.grad_norm for record in self.history)

    @property
    def best_value(self) -> float:
        """The lowest value; infinity after no hyper-iteration."""
        return min(self.values, default=float("inf"))

    @property
    def best_index(self) -> int | None:
        """The first hyper-iteration with the lowest value; None after none."""
        return self.values.index(self.best_value) if self.history else None


def minimize(
    problem: Problem | Callable[[int], Problem],
    dynamics: Dynamics,
    lam: Tree,
    data: Any = None,
    *,
    steps: int,
    outer_steps: int,
    optimizer: Callable[..., Any],
    engine: Engine = REVERSE,
    warm_start: bool = False,
    reparametrize: Tree = None,
    project: Tree = None,
    stop: StoppingRule | None = None,
    callback: Callable[[OuterStep], bool | None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> OuterRun:
    """Run hyper-iterations λ ← optimiser(λ, ∇f_T(λ)).

    Args:
        problem: as for `hypergradient`; or a function of the hyper-iteration (from 0) that returns
            one, such as `in_turn(folds)` or `sampled(tasks, count, seed)`. Values of different
            problems are then compared where the best is looked for.
        dynamics: the inner optimiser.
        lam: where λ starts; it is not changed.
        data: as for `hypergradient`; or a function of the hyper-iteration (from 0) that returns
            them, such as a new task or mini-batch each time.
        steps: T, inner steps a hyper-iteration.
        outer_steps: hyper-iterations, at most.
        optimizer: makes the framework's optimiser; in torch a function of the list of tensors,
            such as `partial(torch.optim.Adam, lr=1e-2)`. It has one hypergradient a step: one that
            evaluates the objective again within a step, such as L-BFGS, is for a loop of your own
            over `outer_objective`.
        engine: how hypergradients are computed.
        warm_start: start the inner run where that of the last hyper-iteration ended, and the linear
            system of `Implicit` at its last solution. With mini-batches as data this is the
            stochastic implicit method of Grazzi et al. (2021) and of Ji et al. (2021, stocBiO).
        reparametrize: sets for leaves of λ, such as `{"rate": Positive(), "shift": None}`, or one
            for all. The optimiser moves θ with λ = inside(θ), along (∂λ/∂θ)ᵀ ∇f_T.
        project: sets for leaves of λ onto which they are projected after every step.
        stop: given the records after every hypergradient, says whether to end the run, such as
            `Patience(steps=20)`.
        callback: called after every hypergradient and before the rule and the update; returning
            True ends the run.
        clock: the time in seconds, for the records.

    Raises:
        ValueError: `outer_steps` is negative, λ does not start in its sets, or a leaf is given to
            both `reparametrize` and `project`; and whatever `hypergradient` raises, with a note of
            the hyper-iteration where a run diverges or does not converge.

    Cost: `outer_steps` hypergradients; memory of one of them, the optimiser's, and the best λ.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 2.3; Convergence Properties of Stochastic Hypergradients (Grazzi, Pontil,
    Salzo, 2021); Bilevel Optimization: Convergence Analysis and Enhanced Design (Ji, Yang, Liang,
    2021).
    """
    if outer_steps < 0:
        raise ValueError(f"outer_steps must be at least 0, found {outer_steps}")

    def instance_of(index: int, lam: Tree) -> Instance:
        return checked_run(
            problem if isinstance(problem, Problem) else problem(index),
            dynamics,
            lam,
            data(index) if callable(data) else data,
            steps=steps,
            engine=engine,
        )

    instance, computed = instance_of(0, lam), None
    lam, backend = instance.lam, instance.backend
    space = coordinates(backend, lam, reparametrize=reparametrize, project=project)
    theta = space.free(lam)
    updater = backend.outer_optimizer(optimizer, theta)
    history: list[OuterRecord] = []
    best, best_lam = float("inf"), lam

    def ended(stopped: Literal["outer_steps", "stop", "callback"]) -> OuterRun:
        return OuterRun(lam=lam, best_lam=best_lam, history=tuple(history), stopped=stopped)

    for index in range(outer_steps):
        began = clock()
        if index > 0:
            instance = instance_of(index, lam)
        if warm_start:
            instance = _warm(instance, computed)
        with _noting(index):
            computed = run_engine(engine, instance)
        value, length = float(computed.value), norm(computed.grad, backend)
        history.append(OuterRecord(value=value, grad_norm=length, seconds=clock() - began))
        if value < best:
            best, best_lam = value, lam
        step = OuterStep(index=index, value=value, grad_norm=length, lam=lam)
        if callback is not None and callback(step):
            return ended("callback")
        if stop is not None and stop(history):
            return ended("stop")
        slope = space.pull(computed.grad, theta)
        theta = space.project(updater.update(slope, theta))
        lam = space.inside(theta)
    return ended("outer_steps")


def _warm(instance: Instance, last: Hypergradient | None) -> Instance:
    """Return the run with the end of the last one for its start."""
    if last is None:
        return instance
    return replace(instance, start=instance.flow.dynamics.params(last.state), guess=last.guess)


@contextmanager
def _noting(index: int) -> Iterator[None]:
    """Say where the outer loop was when an inner run fails; the callback has had every λ before."""
    try:
        yield
    except (ConvergenceError, DivergenceError) as error:
        error.add_note(
            f"this was hyper-iteration {index}: if earlier ones went well, lower the step size of "
            "the outer optimiser, or keep λ within a set (reparametrize, project)"
        )
        raise
