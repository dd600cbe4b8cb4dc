"""The outer loop: minimise f_T over λ with any optimiser of the framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from bilevel_core.abstract import Dynamics, Engine, Tree
from bilevel_core.engines.reverse import Reverse
from bilevel_core.hypergradient import checked_flow, run_engine
from bilevel_core.problem import Problem

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
    """The last λ and one record a hyper-iteration; `lam` of the records is not kept."""

    lam: Tree
    values: tuple[float, ...]
    grad_norms: tuple[float, ...]


def minimize(
    problem: Problem | Callable[[int], Problem],
    dynamics: Dynamics,
    lam: Tree,
    *,
    steps: int,
    outer_steps: int,
    optimizer: Callable[..., Any],
    engine: Engine = REVERSE,
    callback: Callable[[OuterStep], bool | None] | None = None,
) -> OuterRun:
    """Run hyper-iterations λ ← optimiser(λ, ∇f_T(λ)).

    Args:
        problem: as for `hypergradient`; or a function of the hyper-iteration (from 0) that returns
            one, to sample tasks or folds.
        dynamics: the inner optimiser.
        lam: where λ starts; it is not changed.
        steps: T, inner steps a hyper-iteration.
        outer_steps: hyper-iterations, at most.
        optimizer: makes the framework's optimiser; in torch a function of the list of tensors,
            such as `partial(torch.optim.Adam, lr=1e-2)`.
        engine: how hypergradients are computed.
        callback: called after every hypergradient and before the update; returning True stops.

    Raises:
        ValueError: `outer_steps` is negative; and whatever `hypergradient` raises.

    Cost: `outer_steps` hypergradients; memory of one of them and the optimiser's.
    """
    if outer_steps < 0:
        raise ValueError(f"outer_steps must be at least 0, found {outer_steps}")
    first = problem if isinstance(problem, Problem) else problem(0)
    flow, lam = checked_flow(first, dynamics, lam, steps)
    updater = flow.backend.outer_optimizer(optimizer, lam)
    values: list[float] = []
    norms: list[float] = []
    for index in range(outer_steps):
        if index > 0 and not isinstance(problem, Problem):
            flow, lam = checked_flow(problem(index), dynamics, lam, steps)
        computed = run_engine(engine, flow, lam, steps)
        values.append(float(computed.value))
        norms.append(flow.backend.norm(computed.grad))
        record = OuterStep(index=index, value=values[-1], grad_norm=norms[-1], lam=lam)
        if callback is not None and callback(record):
            break
        lam = updater.update(computed.grad)
    return OuterRun(lam=lam, values=tuple(values), grad_norms=tuple(norms))
