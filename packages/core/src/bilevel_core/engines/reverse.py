"""Reverse-mode hypergradient that stores the inner states and rebuilds each step's derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Tree
from bilevel_core.flow import Flow, trajectory
from bilevel_core.results import Hypergradient, diagnose
from bilevel_core.tree import add

__all__ = ["Reverse"]


@final
@dataclass(frozen=True, kw_only=True)
class Reverse:
    """α_T = ∇_s E,  α_{t-1} = α_t A_t,  ∇f_T = ∇_λ E + Σ_t α_t B_t + α_0 ∂Φ_0/∂λ.

    A_t and B_t are the derivatives of Φ_t in the state and in λ; only their products with α are
    ever formed. Differs from the textbook in one point: no graph spans two steps. Each step is
    run again from its stored state in the backward sweep.

    Cost: memory of T + 1 states and one step's graph; time of T steps forward, and T steps run
    and differentiated backward, whatever the size of λ.

    Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
    Frasconi, Pontil, 2017), Algorithm 1; Bilevel Programming for Hyperparameter Optimization and
    Meta-Learning (Franceschi et al., 2018), Algorithm 1.
    """

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇f_T(λ)."""
        vjp = flow.backend.vjp
        states = trajectory(flow, lam, steps)
        value, pull_back = vjp(flow.objective, states[-1], lam)
        alpha, grad = pull_back(flow.backend.ones_like(value))
        for t in range(steps, 0, -1):
            _, pull_back = vjp(lambda s, x, t=t: flow.step(s, x, t), states[t - 1], lam)
            alpha, through_step = pull_back(alpha)
            grad = add(grad, through_step)
        _, pull_back = vjp(flow.start, lam)
        (through_start,) = pull_back(alpha)
        detach = flow.backend.detach
        return Hypergradient(
            value=detach(value),
            grad=detach(add(grad, through_start)),
            state=states[-1],
            result=diagnose(flow.backend, states),
        )
