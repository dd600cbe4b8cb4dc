"""A linear head as plain maths: logits, losses and accuracy, and the spaces it is trained in.

A head that starts at zero stays in the span of its support features: W = s hᵀ A and b = 1ᵀ A. So it
can be trained by its coefficients A (Gram form) or by its weights (primal form); the numbers are
the same, and the smaller space is the cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Form",
    "Head",
    "Normal",
    "accuracy",
    "augmented",
    "coefficients_to_head",
    "cross_entropy",
    "form_for",
    "gram",
    "logits",
    "normal_equations",
    "one_hot",
    "rows_to_head",
    "squared_error",
    "zeros",
]

Head: TypeAlias = dict[str, Tensor]
"""W as "weight", (batch, dim, way), b as "bias", (batch, 1, way), and maybe s as "scale".

A head with a scale, a scalar, was trained on s h in the place of the features h.
"""


def zeros(features: Tensor, way: int) -> Head:
    """Return heads that start at zero, one for each episode of features (batch, n, dim)."""
    batch, _, dim = features.shape
    return {
        "weight": features.new_zeros(batch, dim, way),
        "bias": features.new_zeros(batch, 1, way),
    }


def logits(head: Head, features: Tensor) -> Tensor:
    """Return s h W + b, (batch, n, way), of features h, (batch, n, dim), with the head's own s."""
    weight = head["weight"]
    if "scale" in head:  # on W, which is the smaller
        weight = weight * head["scale"]
    return torch.baddbmm(head["bias"], features, weight)


def one_hot(labels: Tensor, way: int, like: Tensor) -> Tensor:
    """Return classes 0 … way-1, int64 (batch, n), as targets (batch, n, way) of like's dtype."""
    return functional.one_hot(labels, way).to(like)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean softmax cross-entropy of each episode, (batch,).

    Args:
        scores: logits (batch, n, way).
        labels: classes 0 … way-1 as int64, (batch, n).

    Source: multinomial logistic regression, the ground model of Bilevel Programming for
    Hyperparameter Optimization and Meta-Learning (Franceschi et al., 2018), section 5.2.
    """
    each = functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(dim=1)


def squared_error(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of ½‖z - y‖² of each episode, (batch,), from z and y (batch, n, way)."""
    return 0.5 * (scores - targets).square().sum(dim=-1).mean(dim=1)


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of each episode's images that is classified right, (batch,)."""
    return (scores.argmax(dim=-1) == labels).double().mean(dim=1)


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
