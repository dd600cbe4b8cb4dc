"""A block of strided convolution on tasks with weights of their own, differentiated twice.

Convolution, normalisation and ReLU as in `conv_block`, of all tasks at once: the convolution is a
product of matrices, one a task, on patches. Torch's own convolution would be a grouped one, whose
second derivative is slow on a CPU, and normalisation's second derivative some thirty small steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["own_block"]


def own_block(x: Tensor, weight: Tensor, offset: Tensor, eps: float) -> Tensor:
    """Return relu((y - mean y) / √(var y + ε) + β), y = w ∗ x, all of it task by task.

    Args:
        x: (tasks, n, height, width, channels).
        weight: w, (tasks, filters, channels, 3, 3), or (filters, channels, 3, 3) for all.
        offset: β, (tasks, filters), or (filters,) for all.
        eps: ε.

    Result (tasks, n, ⌈height/2⌉, ⌈width/2⌉, filters). Its derivative can be taken twice.

    Raises:
        NotImplementedError: a third derivative is asked for.

    Cost: memory of the patches, 9/4 of the input, and of three times the result.

    Source: Batch Normalization (Ioffe, Szegedy, 2015), Algorithm 1, without γ.
    """
    tasks, n, h, w, _ = x.shape
    filters = weight.shape[-4]
    rows: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    kernels = weight.movedim(-4, -1).transpose(-4, -3).transpose(-3, -2).flatten(-4, -2)
    y = torch.bmm(rows, kernels.expand(tasks, *kernels.shape[-2:]))
    beta = offset.view(-1, 1, filters)
    a: Tensor = _Rectified.apply(y, beta, eps)  # type: ignore[no-untyped-call]
    return a.view(tasks, n, (h + 1) // 2, (w + 1) // 2, filters)


def _windows(framed: Tensor) -> Tensor:
    """Return every second window of (b, h + 2, w + 2, c), a view (b, ⌈h/2⌉, ⌈w/2⌉, 3, 3, c)."""
    return framed.unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3)


def _rows(x: Tensor) -> Tensor:
    """Return the patches of (tasks, n, h, w, c) as rows, (tasks, n ⌈h/2⌉ ⌈w/2⌉, 9 c)."""
    framed = functional.pad(x.flatten(0, 1), (0, 0, 1, 1, 1, 1))
    return _windows(framed).reshape(len(x), -1, 9 * x.shape[-1])


def _summed(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return the transpose of `_rows`: every number added where it was taken from."""
    tasks, n, h, w, c = shape
    framed = rows.new_zeros(tasks * n, h + 2, w + 2, c)
    high, wide = (h + 1) // 2, (w + 1) // 2
    parts = rows.reshape(tasks * n, high, wide, 3, 3, c)
    for i in range(3):
        for j in range(3):
            framed[:, i : i + 2 * high - 1 : 2, j : j + 2 * wide - 1 : 2] += parts[:, :, :, i, j]
    return framed[:, 1:-1, 1:-1].reshape(shape)


class _Gather(torch.autograd.Function):
    """Patches, linear in the images, so that its derivatives are `_Scatter` and itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return _rows(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        found: Tensor = _Scatter.apply(grad, ctx.shape)  # type: ignore[no-untyped-call]
        return found


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shape: torch.Size) -> Tensor:
        del ctx
        return _summed(rows, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        del ctx
        found: Tensor = _Gather.apply(grad)  # type: ignore[no-untyped-call]
        return found, None


class _Rectified(torch.autograd.Function):
    """relu(z + β), z = (y - mean y) r, r = 1/√(var y + ε), over the rows of each task."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, beta: Tensor, eps: float) -> Tensor:
        z = y - y.mean(dim=1, keepdim=True)  # the squares of what is centred: no digits are lost
        r = torch.rsqrt(_mean(z, z) + eps)
        z.mul_(r)
        a = torch.relu_(z + beta)
        ctx.save_for_backward(y, beta, z, r, a)
        return a

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        y, beta, z, r, a = ctx.saved_tensors
        given = (t.detach() for t in (z, r, a))
        found: tuple[Tensor, Tensor] = _Pulled.apply(  # type: ignore[no-untyped-call]
            grad, y, *given
        )
        return found[0], found[1].sum_to_size(beta.shape), None


class _Pulled(torch.autograd.Function):
    """∂/∂y and ∂/∂β from the gradient g in relu(z + β).

    With d = g where the rectifier is open and means over the rows, ∂/∂y is the linear map
    Π d = r (d - mean d - z mean(d z)), which is its own transpose. Its derivative in y, along u, is

        -r mean(d z) Π u - r mean(u z) Π d
            + r² z (mean(u z) mean(d z) + mean u mean d - mean(u d)).
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, y: Tensor, z: Tensor, r: Tensor, a: Tensor
    ) -> tuple[Tensor, Tensor]:
        del y  # what z and r were made of: its derivative is this node's
        d = torch.ops.aten.threshold_backward(g, a, 0)
        total, along = d.sum(dim=1, keepdim=True), _mean(d, z)
        pulled = _projected(d, total / d.shape[1], along, z, r)
        ctx.save_for_backward(d, z, r, a, total, along, pulled)
        return pulled, total

    @staticmethod
    def backward(ctx: Any, u: Tensor, q: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "a second gradient was asked for with create_graph=True, but forward_each can be "
                "differentiated only twice: leave create_graph out, or call the network itself"
            )
        d, z, r, a, total, along, pulled = ctx.saved_tensors
        mean, own = u.mean(dim=1, keepdim=True), _mean(u, z)
        passed = _projected(u, mean, own, z, r)
        rest = own * along + mean * total / d.shape[1] - _mean(u, d)
        of_y = (r * r * rest) * z
        of_y.addcmul_(passed, r * along, value=-1).addcmul_(pulled, r * own, value=-1)
        of_g = torch.ops.aten.threshold_backward(passed + q, a, 0)
        return of_g, of_y, None, None, None


def _mean(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of x y over the rows of each task."""
    return (x * y).mean(dim=1, keepdim=True)


def _projected(d: Tensor, mean: Tensor, along: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """Return Π d."""
    return (d - mean).addcmul_(z, along, value=-1).mul_(r)
