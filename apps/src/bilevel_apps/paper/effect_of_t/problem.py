"""The problem of section 5.1: a linear feature map H, tuned through T steps of ridge regression.

    L_H(w) = ‖Y - X H w‖² + ρ ‖w‖²,  E(w, H) = ‖Y′ - X′ H w‖²

It is posed twice, and both have the same f_T: to be trained step by step, and with T steps in
closed form as its Φ_0, which leaves no steps to take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from bilevel_apps.paper.effect_of_t.data import Examples, Sets
from bilevel_core import GradientDescent, Problem
from bilevel_models import heads

__all__ = ["EXACT", "STEPS", "Counted", "LinearMap", "step_size"]

EXACT = "exact"
STEPS = {"1": 1, "4": 4, "16": 16, "64": 64, "256": 256}

# The heads of the library have a bias. Centred features and targets leave it at zero, and features
# that are scaled up, with weights scaled down, keep its curvature below that of the weights.
SCALE = 100.0


@final
@dataclass(eq=False)
class Counted:
    """L_H, which counts how often it is evaluated."""

    train: Examples
    rho: float
    count: int = field(default=0, init=False)

    def __call__(self, w: Tensor, lam: Tensor) -> Tensor:
        """Return L_H(w)."""
        self.count += 1
        return _squares(self.train, w, lam) + self.rho * w.square().sum()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMap:
    """The problem on some data.

    Attributes:
        sets: D_tr, D_val and D_test.
        rho: ρ.
        eta: η of the T steps of gradient descent, which start at zero.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Example 3.4 and section 5.1.
    """

    sets: Sets
    rho: float
    eta: float

    @property
    def descent(self) -> GradientDescent:
        """The inner optimiser."""
        return GradientDescent(step_size=self.eta)

    def start(self) -> Tensor:
        """Return H = I, (dim, dim)."""
        return torch.eye(self.sets.train.x.shape[1], dtype=torch.float64)

    def by_steps(self, inner: Counted) -> Problem:
        """Return the problem to be trained by T steps from w_0 = 0."""
        size = (self.sets.train.x.shape[1], self.sets.train.y.shape[1])
        return Problem(inner=inner, outer=self.outer, init=lambda H: H.new_zeros(size))

    def closed(self, name: str, inner: Counted) -> Problem:
        """Return the problem whose Φ_0(H) is w_T(H), or w_H for `exact`: none are left to take."""
        return Problem(inner=inner, outer=self.outer, init=lambda H: self.weights(H, name))

    def outer(self, w: Tensor, lam: Tensor) -> Tensor:
        """Return E(w, H)."""
        return _squares(self.sets.held, w, lam)

    def weights(self, H: Tensor, name: str) -> Tensor:
        """Return w_T(H) or w_H, (dim, classes), which can be differentiated in H.

        Args:
            H: the feature map, (dim, dim).
            name: T, or `exact`.

        Cost: a decomposition of a matrix (dim + 1, dim + 1), or of D_tr's size if that is smaller.
        """
        x, y = self.sets.train.x, self.sets.train.y
        support, targets = (x @ H)[None], y[None]
        # The heads' L is a mean with ½: ours divided by 2n.
        decay = SCALE**2 * self.rho / len(x)
        if name == EXACT:
            head = heads.ridge(support, targets, decay=decay, scale=SCALE)
        else:
            head = heads.closed_form(
                support,
                targets,
                steps=STEPS[name],
                step_size=2 * len(x) * self.eta / SCALE**2,
                scale=SCALE,
                decay=decay,
            )
        return SCALE * head["weight"][0]

    def accuracies(self, H: Tensor, w: Tensor) -> dict[str, float]:
        """Return the accuracy on each set."""
        return {
            name: float(((part.x @ (H @ w)).argmax(1) == part.labels).double().mean())
            for name, part in (
                ("train", self.sets.train),
                ("held", self.sets.held),
                ("test", self.sets.test),
            )
        }

    def reach(self, H: Tensor) -> float:
        """Return η times the largest curvature of L_H: gradient descent is stable below 2."""
        return self.eta * _curvature(self.sets.train.x @ H, self.rho)


def step_size(sets: Sets, rho: float, share: float) -> float:
    """Return a share of 1 / (largest curvature of L_H at H = I)."""
    return share / _curvature(sets.train.x, rho)


def _squares(part: Examples, w: Tensor, H: Tensor) -> Tensor:
    return (part.y - part.x @ (H @ w)).square().sum()


def _curvature(features: Tensor, rho: float) -> float:
    """Return the largest eigenvalue of ∇²L, 2 (‖X H‖² + ρ)."""
    gram = features @ features.T if len(features) < features.shape[1] else features.T @ features
    return 2 * (float(torch.linalg.eigvalsh(gram)[-1]) + rho)
