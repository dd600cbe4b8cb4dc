"""Batch normalisation that says whose statistics it uses.

In an episode the choice decides what is measured: with the statistics of the query set, the label
of one query image depends on the others (a transductive score).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["EACH_SET", "RUNNING", "Normalization", "OffsetNorm2d", "Statistics"]


class Normalization(StrEnum):
    """Whose statistics normalise an episode's images.

    EPISODE: the support set its own, the query set its own, in training and in test; transductive
        (the paper's released code).
    BATCH: those of the whole meta-batch in training, running averages in test; inductive.
    GHOST: those of each episode's images (support and query together) in training, running
        averages in test; inductive.
    SUPPORT: those of the support set for both sets, in training and in test; inductive.
    """

    EPISODE = "episode"
    BATCH = "batch"
    GHOST = "ghost"
    SUPPORT = "support"

    @property
    def inductive(self) -> bool:
        """Whether a query image's features are the same alone as among others."""
        return self is not Normalization.EPISODE

    @property
    def by_averages(self) -> bool:
        """Whether running averages normalise in test: an image's features are then its own."""
        return self in (Normalization.GHOST, Normalization.BATCH)


@final
@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Where one forward pass takes its means and variances from.

    Attributes:
        running: use the running averages, and change nothing.
        first: use those of the first so many images of the pass; None means all of them.
        track: let the running averages follow those of all images of the pass.

    Raises:
        ValueError: the first 0 images, or more than one of the three.
    """

    running: bool = False
    first: int | None = None
    track: bool = False

    def __post_init__(self) -> None:
        if self.first is not None and self.first < 1:
            raise ValueError(
                f"first must be at least 1, found {self.first}: statistics need an image"
            )
        if self.running + (self.first is not None) + self.track > 1:
            raise ValueError(
                f"expected one of running, first and track, found {self}: the first images' "
                "statistics are not tracked, and running averages are used as they are"
            )


RUNNING = Statistics(running=True)
EACH_SET = Statistics()


@final
class OffsetNorm2d(nn.Module):
    """y = γ (x - mean) / √(variance + ε) + β, one mean, variance, γ and β a channel.

    By default there is no scale γ: a rectifier and a convolution that follow absorb it (the
    released code of the paper). Shapes: (images, channels, height, width) in and out.

    Args:
        channels: of the images.
        scale: learn γ too, from 1.
        eps: ε.
        momentum: how fast the running averages follow.

    Source: Batch Normalization (Ioffe, Szegedy, 2015), Algorithm 1.
    """

    weight: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, *, scale: bool = False, eps: float = 1e-3, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if scale else None)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, statistics: Statistics) -> Tensor:
        """Normalise x with the statistics asked for."""
        if statistics.running:
            return self._batch_norm(x, training=False, mean=self.running_mean, var=self.running_var)
        # Not len(x), which would fix the number of images when a program is exported.
        if statistics.first is not None and statistics.first < x.shape[0]:
            return self._by_first(x, statistics.first)
        mean, var = (self.running_mean, self.running_var) if statistics.track else (None, None)
        return self._batch_norm(x, training=True, mean=mean, var=var)

    def _batch_norm(
        self, x: Tensor, *, training: bool, mean: Tensor | None, var: Tensor | None
    ) -> Tensor:
        # Of an offset without a scale, torch cannot take the second derivative by its own formula.
        scale = torch.ones_like(self.bias) if training and self.weight is None else self.weight
        return functional.batch_norm(
            x,
            mean,
            var,
            weight=scale,
            bias=self.bias,
            training=training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def _by_first(self, x: Tensor, first: int) -> Tensor:
        # In bfloat16, sums over the images need float32.
        reference = x[:first].to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(reference, dim=(0, 2, 3), correction=0, keepdim=True)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.view(1, -1, 1, 1)
        offset = self.bias.view(1, -1, 1, 1) - mean * scale
        return (x * scale + offset).to(x.dtype)
