"""The mean of each class's features."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from bilevel_models import heads

__all__ = ["class_means", "nearest_mean", "require_even"]


def class_means(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Return c_k = mean of h_i over y_i = k, (episodes, way, dim); zero for a class without any.

    Args:
        features: h, (episodes, n, dim).
        labels: y, int64 (episodes, n).
        way: classes an episode.
    """
    members = heads.one_hot(labels, way, features).mT
    return (members @ features) / members.sum(dim=-1, keepdim=True).clamp(min=1)


def require_even(labels: Tensor, way: int, method: str) -> None:
    """Refuse episodes with more images of one class than of another.

    Raises:
        ValueError: there are such.
    """
    counts = functional.one_hot(labels, way).sum(dim=1)
    if (counts != counts[:, :1]).any():
        uneven = counts[(counts != counts[:, :1]).any(dim=1)][0].tolist()
        raise ValueError(
            f"{method} takes as many support images of each class, found {uneven} of classes "
            f"0 to {way - 1}: leave some out, or take a method such as prototypical"
        )


def nearest_mean(features: Tensor, labels: Tensor, way: int) -> heads.Head:
    """Return W = 2 c, b = -‖c‖²: its logits are -‖h - c_k‖² up to what all classes share."""
    means = class_means(features, labels, way)
    return {"weight": 2 * means.mT, "bias": -means.square().sum(dim=-1).unsqueeze(1)}
