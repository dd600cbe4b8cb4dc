"""Heads for any number of classes and images: shrunken class means, and what is learned of both."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from bilevel_models.heads.checks import check_sets, positive, scalar
from bilevel_models.heads.linear import Head, one_hot
from bilevel_models.heads.optimum import solve

__all__ = ["HeadSolver", "class_means"]

CLASSES = 10.0  # of an episode that outweigh the running mean of all features


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


@final
class HeadSolver(nn.Module):
    """From support features to heads that are right, and calibrated, for any way and shot.

    A head is the optimum of a class-balanced softmax regression whose weights are drawn to those of
    shrunken class means (`class_means`, `solve`). With one image a class it is hardly more than the
    class means; the more images there are, the more it is a regression. Its logits need no
    temperature that depends on the task.

    Features are taken from a centre, between the running mean and the mean of the episode's own
    classes: c = (ν c⁰ + Σ_k a_k x̄_k) / (ν + Σ_k a_k), a_k = n_k / (n_k + r) the weight of a mean of
    n_k images, ν = 10. What is left of it in the head is in the bias.

    Attributes:
        running_mean: c⁰, (dim,), of the features of training; `track` moves it.
        momentum: how fast it follows, an episode.
        log_shrinkage: log r, of the class means.
        log_temperature: log β, likewise.
        log_decay: log ρ, of the regression.

    Args:
        dim: of the features.
        shrinkage: r, where it starts.
        temperature: β, likewise.
        decay: ρ, likewise.
    """

    running_mean: Tensor

    def __init__(
        self, dim: int, *, shrinkage: float = 1.0, temperature: float = 20.0, decay: float = 0.03
    ) -> None:
        super().__init__()
        self.momentum = 0.1
        self.register_buffer("running_mean", torch.zeros(dim))
        self.log_shrinkage = nn.Parameter(torch.tensor(math.log(shrinkage)))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.log_decay = nn.Parameter(torch.tensor(math.log(decay)))

    def fit(self, features: Tensor, targets: Tensor) -> Head:
        """Return one head an episode, differentiable in the features and in the three numbers.

        Args:
            features: of the support images, (batch, n, dim).
            targets: y, (batch, n, way), as `solve` takes them: all zeros where there is no image.

        Raises:
            TypeError, ValueError, HeadDivergenceError: as `solve`.

        Cost: as `solve`.
        """
        check_sets(features, targets)
        r, beta, rho = (
            each.to(features).exp()
            for each in (self.log_shrinkage, self.log_temperature, self.log_decay)
        )
        centre = self._centre(features, targets, r)
        h = features - centre
        prior = class_means(h, targets, shrinkage=r, temperature=beta)
        head = solve(h, targets, decay=rho, prior=prior)
        return {"weight": head["weight"], "bias": head["bias"] - centre @ head["weight"]}

    def fit_labels(self, features: Tensor, labels: Tensor, way: int) -> Head:
        """Return `fit` of classes 0 … way-1, int64 (batch, n)."""
        return self.fit(features, one_hot(labels, way, features))

    @torch.no_grad()
    def surprise(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return how far episodes are from the features of training, (batch,).

        It is N ‖x̄ - c⁰‖² / s², of the mean x̄ of the N classes' means and their variance s²: about 1
        where the classes are drawn as those of training were. A class without images is none.
        """
        means = class_means(features, targets)["weight"].mT  # of a class without images: 0
        there = (targets.sum(dim=1)[..., None] > 0).to(features)
        way = there.sum(dim=(1, 2))
        mean = means.sum(dim=1, keepdim=True) / way[:, None, None]
        spread = (there * (means - mean).square()).sum(dim=(1, 2)) / (way - 1).clamp_min(1)
        away = (mean[:, 0] - self.running_mean.to(features)).square().sum(dim=-1)
        return way * away / spread

    @torch.no_grad()
    def track(self, features: Tensor) -> None:
        """Let the running mean follow features (batch, n, dim), episode after episode."""
        for mean in features.detach().mean(dim=1).to(self.running_mean):
            self.running_mean.lerp_(mean, self.momentum)

    def _centre(self, features: Tensor, targets: Tensor, r: Tensor) -> Tensor:
        """Return c, (batch, 1, dim)."""
        shares = 1 / (targets.sum(dim=1) + r)  # of an image in a_k x̄_k, (batch, way)
        by_image = (targets @ shares[..., None]).mT
        whole = by_image.sum(dim=-1, keepdim=True)
        return (CLASSES * self.running_mean.to(features) + by_image @ features) / (CLASSES + whole)
