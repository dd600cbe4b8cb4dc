"""The backward sweep of reverse mode, which its engines share; they differ in what they store.

    α_T = ∇_s E,  α_{t-1} = α_t A_t,  ∇f_T = ∇_λ E + Σ_t α_t B_t + α_0 ∂Φ_0/∂λ

A_t and B_t are the derivatives of Φ_t in the state and in λ; only their products with α are formed.

Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
Frasconi, Pontil, 2017), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Array, Tree
from bilevel_core.flow import Flow
from bilevel_core.tree import add

__all__ = ["Sweep", "start_sweep"]


@final
@dataclass(kw_only=True)
class Sweep:
    """A sweep on its way back: f_T, α at the present step, and the part of ∇f_T gathered so far."""

    flow: Flow
    lam: Tree
    value: Array
    alpha: Tree
    grad: Tree

    def back(self, before: Tree, t: int) -> None:
        """Pull α back through step t, which is run again from the state before it."""
        _, pull_back = self.flow.backend.vjp(lambda s, x: self.flow.step(s, x, t), before, self.lam)
        self._take(*pull_back(self.alpha))

    def through_start(self) -> None:
        """Pull α_0 back through Φ_0."""
        _, pull_back = self.flow.backend.vjp(self.flow.start, self.lam)
        self._take(self.alpha, *pull_back(self.alpha))

    def _take(self, alpha: Tree, partial: Tree) -> None:
        detach = self.flow.backend.detach
        self.alpha, self.grad = detach(alpha), detach(add(self.grad, partial))


def start_sweep(flow: Flow, lam: Tree, last: Tree) -> Sweep:
    """Begin at s_T: α_T = ∇_s E and the direct part ∇_λ E."""
    value, pull_back = flow.backend.vjp(flow.objective, last, lam)
    alpha, grad = flow.backend.detach(pull_back(flow.backend.ones_like(value)))
    return Sweep(flow=flow, lam=lam, value=flow.backend.detach(value), alpha=alpha, grad=grad)
