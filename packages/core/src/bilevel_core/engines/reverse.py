"""Reverse-mode hypergradient that stores the inner states and runs each step again backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Tree
from bilevel_core.engines.sweep import start_sweep
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
        states = trajectory(flow, lam, flow.backend.detach(flow.start(lam)), 0, steps)
        sweep = start_sweep(flow, lam, states[-1])
        for t in range(steps, 0, -1):
            sweep.back(states[t - 1], t)
        sweep.through_start()
        return Hypergradient(
            value=sweep.value,
            grad=sweep.grad,
            state=states[-1],
            result=diagnose(flow, lam, steps, states[:2], states[-2:]),
        )
