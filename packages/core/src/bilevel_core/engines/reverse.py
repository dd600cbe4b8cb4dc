"""Reverse-mode hypergradient that stores the inner states and runs each step again backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Tree
from bilevel_core.engines.sweep import start_sweep, sweep_through, through_start
from bilevel_core.flow import Flow, trajectory
from bilevel_core.results import Hypergradient, diagnose

__all__ = ["Reverse"]


@final
@dataclass(frozen=True, kw_only=True)
class Reverse:
    """The backward sweep over stored states (sweep.py).

    Differs from the textbook in one point: no graph spans two steps. Each step is run again from
    its stored state in the backward sweep, so memory holds states and not graphs.

    Cost: memory of T + 1 states and one step's graph; time of T steps forward, and T steps run
    and differentiated backward, whatever the size of λ.

    Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
    Frasconi, Pontil, 2017), Algorithm 1; Bilevel Programming for Hyperparameter Optimization and
    Meta-Learning (Franceschi et al., 2018), Algorithm 1.
    """

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇f_T(λ)."""
        way = trajectory(flow, lam, flow.backend.detach(flow.start(lam)), 0, steps)
        value, sweep = start_sweep(flow, lam, way.last)
        sweep = sweep_through(lam, sweep, way)
        return Hypergradient(
            value=value,
            grad=through_start(flow, lam, sweep),
            state=way.last,
            result=diagnose(flow, lam, steps, way.head(), way.tail()),
        )
