"""A block of a convolutional network on several sets of images at once, differentiated once.

3×3 convolution, normalisation without scale, max-pool, ReLU. All sets go through one convolution,
which a large batch makes faster, and each is normalised by its own statistics. What is pooled is
normalised after the pool, a quarter of the numbers: an increasing map commutes with the maximum.
A first block that does not pool never forms the convolution's output (`first_layer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_models.backbones.fused.first_layer import (
    Moments,
    Patches,
    normalising_maps,
    rectified,
    windows,
)
from bilevel_models.refusals import refuse_second_derivatives

__all__ = ["Plan", "block", "channels_last", "weight_gradient"]

# Windows of 64 channels then take 9 MB in bfloat16: less than the last cache of a processor.
_ROWS = 8192


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What of a block is not differentiated.

    Attributes:
        sizes: images of each set, in their order; a set's statistics are its own.
        first: the input are images, which get no gradient.
        pool: a convolution of stride 1 and a 2×2 max-pool; otherwise a convolution of stride 2.
        eps: ε of the normalisation.
        momentum: how fast the running averages follow.
        running: mean and variance, (filters,) each, which follow set by set; None: there are none.
    """

    sizes: tuple[int, ...]
    first: bool
    pool: bool
    eps: float
    momentum: float
    running: tuple[Tensor, Tensor] | None


def block(x: Tensor, weight: Tensor, offset: Tensor, plan: Plan) -> Tensor:
    """Return relu(pool((y - mean y) / √(var y + ε) + β)) with y = w ∗ x, mean and var set by set.

    Args:
        x: (n, channels, height, width), n the sum of the sets' sizes.
        weight: w, (filters, channels, 3, 3).
        offset: β, (filters,).
        plan: the rest.

    Result in channels-last order; under autocast, in its precision.

    Raises:
        NotImplementedError: its gradient is asked for with create_graph=True.

    Cost: the convolution; passes over its output, about three forward and five backward; memory of
    the convolution's output and the block's, and of indices where it pools. Of a first block that
    does not pool: products on patches and one pass each way, memory of the patches and the result.

    Source: Batch Normalization (Ioffe, Szegedy, 2015), Algorithm 1, without γ.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if plan.first and not plan.pool:
        with torch.autocast(device, enabled=False):
            return _on_images(x, weight.flatten(1), offset, plan, dtype)
    x = x.to(dtype)
    result: Tensor = _Block.apply(x, weight, offset, plan)  # type: ignore[no-untyped-call]
    return result


def channels_last(x: Tensor) -> Tensor:
    """Return (n, c, h, w) in channels-last order, with its strides.

    Convolutions read the order off the strides; where c = 1 both orders hold the same numbers and
    `contiguous` may leave the strides of the slow one.
    """
    _, c, h, w = x.shape
    strides = (c * h * w, 1, c * w, c)
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, strides)


def _on_images(
    images: Tensor, weight: Tensor, offset: Tensor, plan: Plan, dtype: torch.dtype
) -> Tensor:
    with torch.no_grad():
        sets = [Patches.of(each, dtype) for each in images.split_with_sizes(plan.sizes)]
        moments = Moments.of(sets, weight.dtype)
        if plan.running is not None:
            counts = [each.rows.shape[1] for each in sets]
            _follow(plan.running, moments.of_output(weight), counts, plan.momentum)
    return rectified(normalising_maps(weight, offset, moments, plan.eps), sets)


def _follow(
    running: tuple[Tensor, Tensor],
    found: tuple[Tensor, Tensor],
    counts: Sequence[int],
    momentum: float,
) -> None:
    """Let the running averages follow set by set; the variance, by its unbiased estimate."""
    for mean, var, n in zip(*found, counts, strict=True):
        running[0].lerp_(mean, momentum)
        running[1].lerp_(var * (n / max(n - 1, 1)), momentum)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, plan: Plan) -> Tensor:
        x = channels_last(x)
        w = channels_last(weight.to(x.dtype))
        y = torch.conv2d(x, w, None, 1 if plan.pool else 2, 1)
        top, where = functional.max_pool2d(y, 2, return_indices=True) if plan.pool else (y, None)
        a = torch.empty_like(top)
        sets = (t.split_with_sizes(plan.sizes) for t in (y, top, a))
        moments = [_normalise(y_, t, a_, offset, plan) for y_, t, a_ in zip(*sets, strict=True)]
        ctx.plan, ctx.moments = plan, moments
        ctx.save_for_backward(x, w, y, where, a)
        return a

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives("forward_sets", "call the network itself")
        (x, w, y, where, a), plan = ctx.saved_tensors, ctx.plan
        g = torch.empty_like(y)
        sets = zip(
            channels_last(grad).split_with_sizes(plan.sizes),
            y.split_with_sizes(plan.sizes),
            a.split_with_sizes(plan.sizes),
            g.split_with_sizes(plan.sizes),
            where.split_with_sizes(plan.sizes) if plan.pool else [None] * len(plan.sizes),
            ctx.moments,
            strict=True,
        )
        offsets = [_pull_back(*each[:5], moments=each[5], eps=plan.eps) for each in sets]
        sides = [1 if plan.pool else 2] * 2, [1, 1], [1, 1], False, [0, 0], 1
        # In float32 the convolution's own is the faster.
        by_windows = x.dtype == torch.bfloat16 and not plan.pool
        grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
            g, x, w, None, *sides, [not plan.first, not by_windows, False]
        )
        if by_windows:
            grad_w = weight_gradient(g, x)
        # As weights lie: where they come of an inner loop, its whole derivative lies as this does.
        return grad_x, grad_w.contiguous(), torch.stack(offsets).sum(dim=0), None


def _normalise(
    y: Tensor, top: Tensor, out: Tensor, offset: Tensor, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Write the rectified, normalised `top` of one set; return the mean of y and 1/√(var y + ε)."""
    aten = torch.ops.aten
    mean, var, rstd = (torch.zeros_like(offset) for _ in range(3))
    if plan.pool:
        # The moments' precision is that of the averages, which therefore cannot be left out.
        mean, var = aten.batch_norm_update_stats(y, *(plan.running or (mean, var)), plan.momentum)
        numbers, found = (mean, var, False), (torch.empty_like(mean), torch.empty_like(mean))
        rstd = torch.rsqrt(var + plan.eps)
    else:
        numbers, found = (*(plan.running or (None, None)), True), (mean, rstd)
    rest = None, offset, *numbers, plan.momentum, plan.eps
    aten.native_batch_norm.out(top, *rest, out=out, save_mean=found[0], save_invstd=found[1])
    out.relu_()
    return mean, rstd


def _pull_back(
    grad: Tensor,
    y: Tensor,
    a: Tensor,
    out: Tensor,
    where: Tensor | None,
    *,
    moments: tuple[Tensor, Tensor],
    eps: float,
) -> Tensor:
    """Write ∂E/∂y of one set, from ∂E/∂a; return ∂E/∂β."""
    aten = torch.ops.aten
    g = aten.threshold_backward(grad, a, 0)
    if where is not None:
        square = [2, 2], [2, 2], [0, 0], [1, 1]
        g = aten.max_pool2d_with_indices_backward(g, y, *square, False, where)
    g, _, offset = aten.native_batch_norm_backward(
        g, y, None, None, None, *moments, True, eps, [True, False, True]
    )
    out.copy_(g)
    found: Tensor = offset
    return found


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return ∂E/∂w of y = w ∗ x, with stride 2 and a border of zeros: Σ_window (∂E/∂y) windowᵀ.

    In bfloat16 the convolution's own takes as long as this with one thread; with several, its
    threads wait for each other in a loop, which costs a multiple where another program has a core.

    Args:
        grad: ∂E/∂y, (n, filters, ⌈h/2⌉, ⌈w/2⌉), channels last.
        x: (n, channels, h, w), channels last.

    Result (filters, channels, 3, 3), channels last, in float32 or wider.

    Cost: 9 times the products of grad and a quarter of x; memory of a few thousand windows.
    """
    (n, filters, h, w), c = grad.shape, x.shape[1]
    images = max(1, _ROWS // (h * w))
    total = grad.new_zeros(filters, 9 * c, dtype=torch.promote_types(x.dtype, torch.float32))
    for part in (slice(i, i + images) for i in range(0, n, images)):
        framed = functional.pad(x[part], (1, 1, 1, 1))
        rows = windows(framed).permute(0, 2, 3, 4, 5, 1).reshape(-1, 9 * c)
        total += grad[part].movedim(1, -1).reshape(-1, filters).T @ rows
    return total.view(filters, 3, 3, c).permute(0, 3, 1, 2)
