"""Reverse-mode hypergradient that stores the inner states and runs each step again backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

from bilevel_core.abstract import Tree
from bilevel_core.engines.sweep import (
    PullBack,
    pulled,
    start_sweep,
    step_vjp,
    sweep_through,
    through_start,
)
from bilevel_core.flow import Flow, trajectory
from bilevel_core.results import Hypergradient, diagnose

__all__ = ["Reverse"]

WORTH_WEIGHING = 10_000
"""Entries of a state below which it costs more to weigh a graph than to run a step again."""


@final
@dataclass(frozen=True, kw_only=True)
class Reverse:
    """The backward sweep over stored states (sweep.py).

    Differs from the textbook in two points. No graph spans two steps: each step is run again from
    its stored state in the backward sweep, so memory holds states and not graphs. And the graphs of
    the first steps are kept all the same as long as they fit into the slack, because a step whose
    graph is there need not be run again.

    Attributes:
        slack: memory for kept graphs, as a fraction of that of the stored states, at least 0. It is
            not used for states of under 10⁴ entries, nor in compiled loops.

    Cost: memory of T + 1 states, `slack` times as much for graphs, and three steps' graphs; time of
    T steps forward, and of T steps differentiated backward, all but the kept ones run again,
    whatever the size of λ.

    Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
    Frasconi, Pontil, 2017), Algorithm 1; Bilevel Programming for Hyperparameter Optimization and
    Meta-Learning (Franceschi et al., 2018), Algorithm 1.
    """

    slack: float = 0.5

    def __post_init__(self) -> None:
        if not self.slack >= 0:
            raise ValueError(f"slack must be at least 0, found {self.slack}")

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇f_T(λ)."""
        start = flow.backend.detach(flow.start(lam))
        kept, state = _keep_graphs(flow, lam, start, steps, self.slack)
        way = trajectory(flow, lam, state, len(kept), steps)
        first = [before for before, _ in kept]
        head, tail = [*first[:2], *way.head()][:2], [*first[-1:], *way.tail()][-2:]
        del first
        value, sweep = start_sweep(flow, lam, way.last)
        sweep = sweep_through(lam, sweep, way)
        while kept:
            _, pull_back = kept.pop()
            sweep = pulled(flow, sweep, pull_back)
        return Hypergradient(
            value=value,
            grad=through_start(flow, lam, sweep),
            state=way.last,
            result=diagnose(flow, lam, steps, head, tail),
        )


_Kept: TypeAlias = list[tuple[Tree, PullBack]]
"""For every step whose graph is kept, the state before it and the way back through it."""


def _keep_graphs(
    flow: Flow, lam: Tree, state: Tree, steps: int, slack: float
) -> tuple[_Kept, Tree]:
    """Take the first steps with their graphs, as many as the slack has room for."""
    kept: _Kept = []
    backend, size = flow.backend, flow.backend.size(state)
    room = slack * steps * size
    if backend.compiles or size < WORTH_WEIGHING or room == 0:
        return kept, state
    most, before = steps, state
    while len(kept) < most:
        moved, pull_back = step_vjp(flow, lam, state, len(kept) + 1)
        if len(kept) == 1:
            # The second step shows what each adds: a state is stored anyway, and data once.
            added = backend.graph_entries(moved, before) - size
            most = min(steps, max(2, int(room / max(1, added))))
        kept.append((state, pull_back))
        state, before = backend.detach(moved), moved
    return kept, state
