"""Heads of ridge regression, solved exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_models.heads.checks import check_finite, check_sets, positive, precise, scalar
from bilevel_models.heads.linear import Form, Head, normal_equations

__all__ = ["ridge"]


@precise
def ridge(
    support: Tensor,
    targets: Tensor,
    *,
    decay: Tensor | float,
    scale: Tensor | float = 1.0,
    form: Form | None = None,
) -> Head:
    """Return the head of each episode that minimises mean_i ½‖s h_i W + b - y_i‖² + (ρ/2) ‖w‖².

    A = (K + n ρ I)⁻¹ y with K = s² h hᵀ + 1, or w = (Xᵀ X + n ρ I)⁻¹ Xᵀ y with X = [s h, 1]. It is
    what `closed_form` and `descend` come to with the squared loss and many steps. It can be
    differentiated, to any order, in every tensor that is passed.

    Args:
        support: features h, (batch, n, dim).
        targets: y, (batch, n, way), of the features' dtype.
        decay: ρ > 0, of weights and bias.
        scale: s; the head carries it.
        form: which system is solved; None takes the smaller.

    Raises:
        TypeError, ValueError: arguments whose dtype or shape do not fit, or ρ ≤ 0.
        HeadDivergenceError: the features are not finite.

    Cost: p³ + p² way an episode with p = min(n, dim + 1).

    Source: Meta-learning with Differentiable Closed-Form Solvers (Bertinetto, Henriques, Torr,
    Vedaldi, 2019), the ridge regression learner and its Woodbury form.
    """
    check_sets(support, targets)
    rho = positive(decay, "decay", support)
    equations = normal_equations(support, targets, scalar(scale, "scale", support), form)
    matrix = equations.decayed(rho)
    check_finite(matrix)
    return equations.head(torch.linalg.solve(matrix, equations.right))
