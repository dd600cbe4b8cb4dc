"""Linear classifiers on features, one an episode, all of a meta-batch at once.

The parameters are a dict {"weight": (batch, dim, way), "bias": (batch, 1, way)}: the inner variable
w of a hyper-representation. The functions are plain maths, for any engine to differentiate.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Head", "accuracy", "cross_entropy", "logits", "zeros"]

Head: TypeAlias = dict[str, Tensor]


def zeros(features: Tensor, way: int) -> Head:
    """Return heads that start at zero, one for each episode of features (batch, n, dim)."""
    batch, _, dim = features.shape
    return {
        "weight": features.new_zeros(batch, dim, way),
        "bias": features.new_zeros(batch, 1, way),
    }


def logits(head: Head, features: Tensor) -> Tensor:
    """Return h W + b: (batch, n, way) from features (batch, n, dim)."""
    return torch.baddbmm(head["bias"], features, head["weight"])


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


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of each episode's images that is classified right, (batch,)."""
    return (scores.argmax(dim=-1) == labels).double().mean(dim=1)
