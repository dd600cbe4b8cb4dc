"""A block of strided convolution on images themselves, as matrix products on their patches.

Images have few channels, so that a matrix product of their 3×3 patches costs less than a
convolution. And they do not change: the mean μ and covariance C of a set's patches give the
statistics of the convolution's output y = w p without it, mean y = w μ and var y = w C wᵀ, so that
convolution, normalisation and offset are one linear map of patches,

    (y - mean y) / √(var y + ε) + β = u [p; 1],  u = [w, β - w μ] with w divided by √(w C wᵀ + ε).

y is neither written nor kept. Autograd goes through u, whose size is that of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from bilevel_models.refusals import refuse_second_derivatives

__all__ = ["Moments", "Patches", "normalising_maps", "rectified", "windows"]


def windows(framed: Tensor) -> Tensor:
    """Return every second window of (n, c, h + 2, w + 2), a view (n, c, ⌈h/2⌉, ⌈w/2⌉, 3, 3)."""
    return framed.unfold(2, 3, 2).unfold(3, 3, 2)


@final
@dataclass(frozen=True, kw_only=True)
class Patches:
    """The 3×3 patches of a set of images, every second pixel, with a border of zeros.

    Attributes:
        rows: pixels of the patches less `level`, a row each in the order of a convolution's weight,
            and below them a row of ones, (9 channels + 1, n height width). Shifted pixels lose less
            in bfloat16.
        level: the mean of the images, a scalar.
        shape: n, height and width, where the convolution's output has them.
    """

    rows: Tensor
    level: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, images: Tensor, dtype: torch.dtype) -> Patches:
        """Return the patches of images (n, channels, height, width), in a precision."""
        n, c, h, w = images.shape
        level = images.mean()
        framed = (-level).to(dtype).expand(n, c, h + 2, w + 2).clone()
        framed[..., 1:-1, 1:-1] = images - level
        pixels = windows(framed).permute(1, 4, 5, 0, 2, 3)
        height, width = pixels.shape[4:]
        rows = framed.new_empty(9 * c + 1, n, height, width)
        rows[:-1].view(pixels.shape).copy_(pixels)
        rows[-1] = 1
        return cls(rows=rows.flatten(1), level=level, shape=(n, height, width))


@final
@dataclass(frozen=True, kw_only=True)
class Moments:
    """What normalises the output of a convolution on several sets of patches.

    Attributes:
        mean: μ of each set's patches, less their level, (sets, 9 channels).
        covariance: C, (sets, 9 channels, 9 channels).
        level: (sets, 1).
    """

    mean: Tensor
    covariance: Tensor
    level: Tensor

    @classmethod
    def of(cls, sets: Sequence[Patches], dtype: torch.dtype) -> Moments:
        """Return the moments of sets, in a precision."""
        sums = torch.stack([_gram(each.rows.to(dtype)) for each in sets])
        second, mean = sums[:, :-1, :-1], sums[:, :-1, -1]
        return cls(
            mean=mean,
            covariance=second - mean[:, :, None] * mean[:, None, :],
            level=torch.stack([each.level for each in sets]).to(dtype)[:, None],
        )

    def of_output(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of w p, (sets, filters) each, for w (filters, 9 channels)."""
        mean = (self.mean + self.level) @ weight.T
        return mean, ((weight @ self.covariance) * weight).sum(dim=-1)


def normalising_maps(weight: Tensor, offset: Tensor, moments: Moments, eps: float) -> Tensor:
    """Return u of each set, (sets, filters, 9 channels + 1).

    Args:
        weight: w, (filters, 9 channels).
        offset: β, (filters,).
        moments: μ and C.
        eps: ε.
    """
    _, var = moments.of_output(weight)
    scaled = weight * torch.rsqrt(var + eps)[:, :, None]
    rest = offset[:, None] - scaled @ moments.mean[:, :, None]
    return torch.cat((scaled, rest), dim=-1)


def rectified(maps: Tensor, sets: Sequence[Patches]) -> Tensor:
    """Return relu(u [p; 1]), (n, filters, height, width) of all sets' images, channels last.

    Its gradient can be taken once, in u.

    Args:
        maps: u of each set, (sets, filters, 9 channels + 1), in any precision.
        sets: p; the result has their precision.
    """
    result: Tensor = _Rectified.apply(maps, sets)  # type: ignore[no-untyped-call]
    return result


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, sets: Sequence[Patches]) -> Tensor:
        (_, h, w), filters = sets[0].shape, maps.shape[1]
        u = maps.to(sets[0].rows.dtype)
        a = u.new_empty(sum(each.shape[0] for each in sets), h, w, filters)
        for each, map_, out in zip(sets, u, _by_set(a, sets), strict=True):
            torch.mm(each.rows.T, map_.T, out=out).relu_()
        ctx.sets, ctx.dtype = sets, maps.dtype
        ctx.save_for_backward(a)
        return a.movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivatives("forward_sets", "call the network itself")
        (a,), sets = ctx.saved_tensors, ctx.sets
        grads = _by_set(grad.movedim(1, -1).contiguous(), sets)
        found = [
            each.rows @ torch.ops.aten.threshold_backward(g, a_, 0)
            for each, g, a_ in zip(sets, grads, _by_set(a, sets), strict=True)
        ]
        return torch.stack(found).mT.to(ctx.dtype), None


def _by_set(x: Tensor, sets: Sequence[Patches]) -> tuple[Tensor, ...]:
    """Cut (n, height, width, filters) into (n height width, filters) of each set."""
    return x.flatten(0, 2).split_with_sizes([each.rows.shape[1] for each in sets])


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.T / rows.shape[1]
