"""The derivative that disregards how λ shaped w."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.arrays import zeros
from bilevel_core.divergence import diagnose
from bilevel_core.flow import Instance, run_ends
from bilevel_core.results import Pulled, Solution
from bilevel_core.types import Tree

__all__ = ["Direct"]


@final
@dataclass(frozen=True, kw_only=True)
class Direct:
    """∂w_T/∂λ taken as 0, so that ∇f_T is taken as ∇_λ E(w, λ) at w = w_T.

    Not the gradient of f_T unless T = 0 and Φ_0 does not depend on λ: a baseline.

    Cost: T steps forward; memory of four states (the first two and the last two) for the verdict
    on the run, whatever T is.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), section 5.3, "Approx".
    """

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run all T steps."""
        del keep
        ends = run_ends(instance)
        return Solution(state=ends[1][-1], result=diagnose(instance, ends))

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Return zeros."""
        del solution, cotangent
        backend = instance.backend
        return Pulled(lam=zeros(instance.lam, backend), start=zeros(instance.start, backend))
