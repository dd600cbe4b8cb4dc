"""Real-time hypergradients: λ is updated while the inner run goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

from bilevel_core.abstract import Dynamics
from bilevel_core.arrays import from_entries, norm, size, unit_tangents
from bilevel_core.constraints.reparametrization import coordinates
from bilevel_core.engines.forward import Carry, Forward
from bilevel_core.flow import Instance, start_state
from bilevel_core.hypergradient import checked_run
from bilevel_core.minimize import OuterStep
from bilevel_core.problem import Problem
from bilevel_core.results import Code, DivergenceError
from bilevel_core.types import Tree
from bilevel_core.validation import refuse_unused

__all__ = ["OnlineRun", "minimize_online"]


@final
@dataclass(frozen=True, kw_only=True)
class OnlineRun:
    """What one run with updates of λ on its way leaves.

    Attributes:
        lam: λ after the last update.
        state: the dynamics' state after the last inner step.
        values: E(w_t, λ) at every update, before it.
        losses: L_λ(w_t) at every update, before it.
        lams: λ at every update, before it.
    """

    lam: Tree
    state: Tree
    values: tuple[float, ...]
    losses: tuple[float, ...]
    lams: tuple[Tree, ...]


def minimize_online(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    data: Any = None,
    *,
    steps: int,
    optimizer: Callable[..., Any],
    every: int = 1,
    chunk: int | None = None,
    reparametrize: Tree = None,
    project: Tree = None,
    callback: Callable[[OuterStep], bool | None] | None = None,
) -> OnlineRun:
    """Take T inner steps and move λ along ∇_λ E + ∇_s E Z_t after every few of them.

        Z_0 = ∂s_0/∂λ,  Z_t = A_t Z_{t-1} + B_t,

    with A_t and B_t the derivatives of Φ_t in the state and in λ, at the λ of that step. Z is
    carried on over the updates as if λ had been the same from the start: its part from before an
    update belongs to an older λ, and so the direction is ∇f_t only as long as λ moves slowly.

    Args:
        problem: as for `hypergradient`.
        dynamics: the inner optimiser.
        lam: where λ starts; it is not changed.
        data: as for `hypergradient`.
        steps: T, inner steps in all.
        optimizer: as for `minimize`.
        every: inner steps from one update to the next, at least 1.
        chunk: hyperparameters whose tangents go through a step at once; None takes all.
        reparametrize: as for `minimize`; Z remains the derivative in λ.
        project: as for `minimize`.
        callback: called at every update and before it with its index from 0, so after
            (index + 1) · every steps; returning True ends the run.

    Raises:
        ValueError: `every` or `chunk` is below 1, `every` is above T > 0, or nothing uses a leaf of
            λ; and what `minimize` says of sets.
        DivergenceError: the state, E or the direction is not finite.
        TypeError: as for `hypergradient`.

    Cost: memory of a tangent of the state for each hyperparameter; time of T steps with as many
    products, the step itself being taken once for every chunk.

    Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
    Frasconi, Pontil, 2017), section 3.3, Algorithm 2 and Eq. 15.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1 inner step, found {every}")
    if every > steps > 0:
        raise ValueError(
            f"every = {every} is more than the {steps} inner steps in all: λ would never move"
        )
    engine = Forward(chunk=chunk)  # refuses a chunk below 1
    instance = checked_run(problem, dynamics, lam, data, steps=steps, engine=engine)
    lam, backend = instance.lam, instance.backend
    space = coordinates(backend, lam, reparametrize=reparametrize, project=project)
    theta = space.free(lam)
    updater = backend.outer_optimizer(optimizer, theta)
    state, chunks = _start(instance, chunk)
    values: list[float] = []
    losses: list[float] = []
    lams: list[Tree] = []
    for position in range(0, steps, every):
        end = min(position + every, steps)
        state, chunks = _advance(instance, state, chunks, range(position + 1, end + 1))
        if end - position < every:
            break
        value, grad = _direction(instance, state, chunks, end)
        if position == 0:
            refuse_unused(instance, grad)
        values.append(value)
        losses.append(_loss(instance, state, end))
        lams.append(lam)
        length = norm(grad, backend)
        step = OuterStep(index=len(lams) - 1, value=value, grad_norm=length, lam=lam)
        if callback is not None and callback(step):
            break
        theta = space.project(updater.update(space.pull(grad, theta), theta))
        lam = space.inside(theta)
        instance = replace(instance, lam=lam)
    return OnlineRun(
        lam=lam, state=state, values=tuple(values), losses=tuple(losses), lams=tuple(lams)
    )


_Chunks: TypeAlias = list[tuple[Tree, Tree]]
"""For every chunk of hyperparameters, their rows of the identity and the products with Z_t."""


def _start(instance: Instance, chunk: int | None) -> tuple[Tree, _Chunks]:
    """Return s_0 and Z_0."""
    backend, lam, count = instance.backend, instance.lam, size(instance.lam)
    width = min(chunk or count, count)
    chunks: _Chunks = []

    def start(lam: Tree) -> Tree:
        return instance.flow.start(lam, (), instance.data)

    with backend.values_only():
        for first in range(0, count, width):
            units = unit_tangents(lam, first, min(width, count - first), backend)
            _, tangents = backend.detach(backend.jvps(start, (lam,), (units,)))
            chunks.append((units, tangents))
        return start_state(instance), chunks


def _advance(
    instance: Instance, state: Tree, chunks: _Chunks, times: range
) -> tuple[Tree, _Chunks]:
    """Return the state and Z after the steps `times`, all at one λ."""
    backend, before, carried = instance.backend, state, []
    body = Carry(instance.flow)
    with backend.values_only():
        for units, tangents in chunks:
            fixed = (instance.lam, units, instance.data)
            _, (state, moved) = backend.loop(body, (before, tangents), fixed, times)
            carried.append((units, moved))
    if not math.isfinite(norm(state, backend)):
        raise DivergenceError(
            f"the inner run is not finite after step {times[-1]}: {Code.NOT_FINITE.value}, or "
            "lower the step size of the outer optimiser"
        )
    return state, carried


def _direction(instance: Instance, state: Tree, chunks: _Chunks, t: int) -> tuple[float, Tree]:
    """Return E(w_t, λ) and ∇_λ E + ∇_s E Z_t."""
    backend, flow, lam = instance.backend, instance.flow, instance.lam

    def objective(state: Tree, lam: Tree) -> Tree:
        return flow.outer(flow.dynamics.params(state), lam, instance.data)

    with backend.values_only():
        ends = [backend.jvps(objective, (state, lam), (z, units)) for units, z in chunks]
    value = float(ends[0][0])
    grad = from_entries([backend.detach(part) for _, part in ends], lam, backend)
    if not math.isfinite(value) or not math.isfinite(norm(grad, backend)):
        raise DivergenceError(
            f"the outer objective or its hypergradient is not finite after step {t}, although the "
            "inner run is: look for a division by zero or a logarithm of zero in the objectives"
        )
    return value, grad


def _loss(instance: Instance, state: Tree, t: int) -> float:
    flow, lam = instance.flow, instance.lam
    with flow.backend.values_only():
        return float(flow.inner(flow.dynamics.params(state), lam, flow.seen(t, instance.data)))
