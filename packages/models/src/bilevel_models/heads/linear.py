"""The functions of a linear head: logits, losses and accuracy, as plain maths."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Head",
    "accuracy",
    "cross_entropy",
    "logits",
    "one_hot",
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
