"""A backbone whose features are averaged over small shifts of each image, for tests."""

from __future__ import annotations

from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_models.normalization import EACH_SET, Statistics

__all__ = ["ShiftAveraged"]


@final
class ShiftAveraged(nn.Module):
    """h(x) = mean over (i, j) in {-d, 0, d}² of g(x moved by i pixels down and j to the right).

    What a shift uncovers repeats the pixels at the edge. Each image is treated by itself, so the
    features are as inductive as those of g; its statistics are those of each shift's images apart.

    Args:
        network: g, a trained `Backbone`; shared, not copied.
        pixels: d ≥ 1.

    Raises:
        ValueError: pixels < 1.

    Cost: nine passes through the network.
    """

    def __init__(self, network: nn.Module, pixels: int) -> None:
        super().__init__()
        if pixels < 1:
            raise ValueError(f"pixels={pixels}: expected 1 or more: 0 is the network by itself")
        self.network, self.pixels = network, pixels
        self.dim = cast("int", network.dim)

    def forward(self, images: Tensor, statistics: Statistics = EACH_SET) -> Tensor:
        """Return features (n, dim) of images (n, channels, height, width)."""
        d, (height, width) = self.pixels, images.shape[-2:]
        around = functional.pad(images, (d, d, d, d), mode="replicate")
        moved = [
            around[..., top : top + height, left : left + width]
            for top in (0, d, 2 * d)
            for left in (0, d, 2 * d)
        ]
        features = [cast("Tensor", self.network(each, statistics)) for each in moved]
        wide = [h if h.dtype == torch.float64 else h.float() for h in features]  # as `Encoder` has
        return torch.stack(wide).mean(dim=0)
