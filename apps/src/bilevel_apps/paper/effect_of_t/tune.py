"""One optimisation of H: what is seen on the way, and the work of a hypergradient."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bilevel_apps.paper.effect_of_t.problem import EXACT, STEPS, Counted, LinearMap
from bilevel_core import (
    Engine,
    Hypergradient,
    Implicit,
    OuterRun,
    OuterStep,
    Problem,
    Reverse,
    Unrolled,
    hypergradient,
    minimize,
)

__all__ = ["MOMENTUM", "RATE", "Length", "tune"]

RATE, MOMENTUM = 0.05, 0.9
CLOSED = Unrolled()
BY_STEPS = Reverse()  # as in the paper: each step is run again in the backward sweep


@final
@dataclass(frozen=True, kw_only=True)
class Length:
    """Hyper-iterations, how often to look, and how many to take step by step as well."""

    outer_steps: int
    every: int
    slow: int


def tune(problem: LinearMap, name: str, length: Length, *, compare: bool) -> dict[str, Any]:
    """Tune H for one T.

    Args:
        problem: the problem.
        name: T, or `exact`.
        length: how long.
        compare: also step by step, on the way and at the end.

    Returns:
        η, what was seen at every look, the median processor seconds of a hypergradient, and with
        `compare` the work of one (see `_compared`).
    """
    looks: list[dict[str, Any]] = []

    def follow(step: OuterStep) -> bool:
        if step.index % length.every == 0:
            looks.append(_look(problem, name, step))
        return step.index == length.outer_steps

    inner = Counted(problem.sets.train, problem.rho)
    closed = problem.closed(name, inner)
    run = _minimized(closed, problem, 0, CLOSED, length.outer_steps + 1, follow)
    found: dict[str, Any] = {
        "eta": problem.eta,
        "looks": looks,
        "seconds": statistics.median(record.seconds for record in run.history),
    }
    if compare:
        inner.count = 0
        fast, gflop = _weighed(closed, problem, run.lam, 0, CLOSED)
        mine = {"closed_steps": inner.count, "closed_gflop": gflop}
        found["work"] = mine | _compared(problem, name, run, fast, length.slow)
    return found


def _look(problem: LinearMap, name: str, step: OuterStep) -> dict[str, Any]:
    """Return f_T, f at the same H, the accuracies, and for `exact` every f_T at its H."""
    H = step.lam
    f = float(problem.outer(problem.weights(H, EXACT), H))
    found: dict[str, Any] = {
        "step": step.index,
        "f_T": step.value,
        "f": f,
        "reach": problem.reach(H),
        **problem.accuracies(H, problem.weights(H, name)),
    }
    if name == EXACT:
        found["others"] = {T: float(problem.outer(problem.weights(H, T), H)) for T in STEPS}
    return found


def _compared(
    problem: LinearMap, name: str, run: OuterRun, fast: Hypergradient, count: int
) -> dict[str, Any]:
    """Return work and time of the step-by-step engine, and how far it is from the closed form.

    `path_gap` is that of values and gradients in the first hyper-iterations, and `gap` that of the
    hypergradient at the last H, both relative. What is exact is compared with the implicit
    hypergradient at the minimiser, by conjugate gradient.
    """
    inner = Counted(problem.sets.train, problem.rho)
    posed = problem.by_steps(inner)
    if name == EXACT:
        w = problem.weights(run.lam, EXACT)
        still = replace(posed, init=lambda H: w)  # noqa: ARG005
        slow, _ = _weighed(still, problem, run.lam, 0, Implicit())
        return {"gap": _apart(slow.grad, fast.grad)}
    way = _minimized(posed, problem, STEPS[name], BY_STEPS, count)
    inner.count = 0
    slow, gflop = _weighed(posed, problem, run.lam, STEPS[name], BY_STEPS)
    pairs = [*zip(way.values, run.values, strict=False)]
    pairs += zip(way.grad_norms, run.grad_norms, strict=False)
    return {
        "steps": inner.count,
        "gflop": gflop,
        "seconds": statistics.median(record.seconds for record in way.history),
        "gap": _apart(slow.grad, fast.grad),
        "path_gap": max(abs(a - b) / abs(a) for a, b in pairs),
    }


def _minimized(
    posed: Problem,
    problem: LinearMap,
    steps: int,
    engine: Engine,
    outer_steps: int,
    callback: Callable[[OuterStep], bool] | None = None,
) -> OuterRun:
    return minimize(
        posed,
        problem.descent,
        problem.start(),
        steps=steps,
        outer_steps=outer_steps,
        optimizer=partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM),
        engine=engine,
        callback=callback,
        clock=time.process_time,  # so that what else runs on the machine counts less
    )


def _weighed(
    posed: Problem, problem: LinearMap, H: Tensor, steps: int, engine: Engine
) -> tuple[Hypergradient, float]:
    """Return a hypergradient, and 10⁹ floating-point operations in its matrix products."""
    with FlopCounterMode(display=False) as counter:
        found = hypergradient(posed, problem.descent, H, steps=steps, engine=engine)
    return found, counter.get_total_flops() / 1e9


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())
