"""The gradient that disregards how λ shaped w."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Tree
from bilevel_core.engines.sweep import start_sweep
from bilevel_core.flow import Flow, run_ends
from bilevel_core.results import Hypergradient, diagnose

__all__ = ["Direct"]


@final
@dataclass(frozen=True, kw_only=True)
class Direct:
    """∇_λ E(w, λ) at w = w_T, with ∇_λ w_T taken as 0.

    Not the gradient of f_T unless T = 0 and Φ_0 does not depend on λ: a baseline.

    Cost: T steps forward and one gradient; memory of four states (the first two and the last two)
    for the verdict on the run, whatever T is.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 5.3, "Approx".
    """

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇_λ E."""
        head, tail = run_ends(flow, lam, steps)
        value, (_, grad) = start_sweep(flow, lam, tail[-1])
        return Hypergradient(
            value=value,
            grad=grad,
            state=tail[-1],
            result=diagnose(flow, lam, steps, head, tail),
        )
