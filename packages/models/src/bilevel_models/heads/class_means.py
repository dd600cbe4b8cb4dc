"""Heads without training: each class is its mean, drawn to the origin where it is uncertain."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_models.heads.checks import check_sets, positive, scalar
from bilevel_models.heads.linear import Head

__all__ = ["class_means"]


def class_means(
    support: Tensor,
    targets: Tensor,
    *,
    shrinkage: Tensor | float = 0.0,
    temperature: Tensor | float = 1.0,
) -> Head:
    """Return the head with the logits β (h·m - ‖m‖²/2), m = n/(n + r) times a class's mean.

    Up to what all classes share, that is -β ‖h - m‖²/2. If images scatter about their class with a
    variance r times that of the classes about the origin, m is the posterior mean of the class: one
    image says less than ten, and unequal numbers need no other care. An image whose target is all
    zeros is none.

    Args:
        support: features h, (batch, n, dim), best from a common centre.
        targets: y, (batch, n, way), of the features' dtype.
        shrinkage: r ≥ 0; 0 gives the nearest class mean.
        temperature: β > 0, the inverse of the variance within a class.

    Raises:
        TypeError, ValueError: arguments whose dtype or shape do not fit, or a negative r.

    Cost: a product of (way, n) with (n, dim) an episode. Autograd differentiates it to any order.

    Source: Prototypical Networks for Few-shot Learning (Snell, Swersky, Zemel, 2017), section 2.4;
    Probabilistic Linear Discriminant Analysis for Inferences About Identity (Prince, Elder, 2007),
    for the mean of a class given few of its images.
    """
    check_sets(support, targets)
    beta, r = positive(temperature, "temperature", support), scalar(shrinkage, "shrinkage", support)
    if not float(r.detach()) >= 0:
        raise ValueError(f"shrinkage must be at least 0, found {float(r.detach())}: 0 is none")
    counts = targets.sum(dim=1, keepdim=True)
    # A class without images is the origin.
    means = (support.mT @ targets) / torch.where(counts > 0, counts + r, 1)
    return {
        "weight": beta * means,
        "bias": -0.5 * beta * means.square().sum(dim=1, keepdim=True),
    }
