"""The 3×3 windows of a convolution of stride 2, and its weight's gradient as matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["weight_gradient", "windows"]

# Windows of 64 channels then take 9 MB in bfloat16: less than the last cache of a processor.
_ROWS = 8192


def windows(framed: Tensor) -> Tensor:
    """Return every second window of (n, c, h + 2, w + 2), a view (n, c, ⌈h/2⌉, ⌈w/2⌉, 3, 3)."""
    return framed.unfold(2, 3, 2).unfold(3, 3, 2)


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
