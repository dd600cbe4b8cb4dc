"""The two spaces in which a linear head is trained, and which is the smaller.

A head that starts at zero stays in the span of its support features: W = s hᵀ A and b = 1ᵀ A. So it
can be trained by its coefficients A (Gram form) or by its weights (primal form); the numbers are
the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import final

import torch
from torch import Tensor

from bilevel_models.heads.linear import Head

__all__ = [
    "Form",
    "Normal",
    "augmented",
    "coefficients_to_head",
    "form_for",
    "gram",
    "normal_equations",
    "rows_to_head",
]


class Form(Enum):
    """What is stored and stepped, an episode.

    GRAM: coefficients A (n, way); a step costs n² · way.
    PRIMAL: weights and bias (dim + 1, way); a step costs 2 n (dim + 1) · way.
    """

    GRAM = "gram"
    PRIMAL = "primal"


def form_for(support: Tensor) -> Form:
    """Return the form whose steps are the cheaper for features (batch, n, dim)."""
    _, n, dim = support.shape
    return Form.GRAM if n <= 2 * (dim + 1) else Form.PRIMAL


def gram(support: Tensor, scale: Tensor) -> Tensor:
    """Return K = s² h hᵀ + 1 of features (batch, n, dim), (batch, n, n): the bias is the 1."""
    return (support @ support.mT) * scale.square() + 1


def augmented(support: Tensor, scale: Tensor) -> Tensor:
    """Return [s h, 1] of features (batch, n, dim), (batch, n, dim + 1)."""
    return torch.cat((support * scale, support.new_ones(*support.shape[:2], 1)), dim=-1)


def coefficients_to_head(support: Tensor, scale: Tensor, coefficients: Tensor) -> Head:
    """Return the head W = s hᵀ A, b = 1ᵀ A of coefficients (batch, n, way)."""
    return {
        "weight": (support.mT @ coefficients) * scale,
        "bias": coefficients.sum(dim=1, keepdim=True),
        "scale": scale,
    }


def rows_to_head(scale: Tensor, rows: Tensor) -> Head:
    """Return the head whose weights and, below them, biases are (batch, dim + 1, way)."""
    return {"weight": rows[:, :-1], "bias": rows[:, -1:], "scale": scale}


@final
@dataclass(frozen=True, kw_only=True)
class Normal:
    """The equations G u = r that a head of the squared loss solves in one of the two forms.

    Attributes:
        matrix: G, K or Xᵀ X, (batch, p, p).
        right: r, y or Xᵀ y, (batch, p, way).
        support: h, (batch, n, dim).
        scale: s.
        form: which of the two.
    """

    matrix: Tensor
    right: Tensor
    support: Tensor
    scale: Tensor
    form: Form

    def decayed(self, decay: Tensor) -> Tensor:
        """Return G + n ρ I."""
        identity = torch.eye(self.matrix.shape[-1]).to(self.matrix)
        return self.matrix + self.support.shape[1] * decay * identity

    def head(self, solution: Tensor) -> Head:
        """Return the head of a solution (batch, p, way)."""
        if self.form is Form.PRIMAL:
            return rows_to_head(self.scale, solution)
        return coefficients_to_head(self.support, self.scale, solution)


def normal_equations(support: Tensor, targets: Tensor, scale: Tensor, form: Form | None) -> Normal:
    """Return the equations in a form, or in the one whose matrix is the smaller."""
    _, n, dim = support.shape
    form = form or (Form.GRAM if n <= dim + 1 else Form.PRIMAL)
    if form is Form.GRAM:
        matrix, right = gram(support, scale), targets
    else:
        x = augmented(support, scale)
        matrix, right = x.mT @ x, x.mT @ targets
    return Normal(matrix=matrix, right=right, support=support, scale=scale, form=form)
