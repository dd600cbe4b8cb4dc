"""ResNet-12, the residual network of today's few-shot literature."""

from __future__ import annotations

import itertools
from typing import final

from torch import Tensor, nn
from torch.nn import functional

from bilevel_models.backbones.recomputed import (
    Normalise,
    convolved_thrice,
    leaky_relu,
    recomputed,
    three_convolutions,
)
from bilevel_models.backbones.sizes import check_sizes, halved
from bilevel_models.normalization import EACH_SET, OffsetNorm2d, Statistics

__all__ = ["ResNet12", "resnet12"]


@final
class _Block(nn.Module):
    """r(pool(n₃(w₃ ∗ r(n₂(w₂ ∗ r(n₁(w₁ ∗ x))))) + n(s ∗ x))), r the leaky rectifier."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.convolutions = three_convolutions(channels, filters, 3)
        self.norms = nn.ModuleList(_norm(filters) for _ in range(3))
        self.skip = nn.Conv2d(channels, filters, 1, bias=False)
        self.skip_norm = _norm(filters)

    def forward(self, x: Tensor, statistics: Statistics) -> Tensor:
        y = convolved_thrice(self.convolutions, self.norms, x, statistics)
        return recomputed(self._end, statistics, x, y)

    def _end(self, normalise: Normalise, x: Tensor, y: Tensor) -> Tensor:
        total = normalise(self.skip_norm, self.skip(x))
        total = total.add_(normalise(self.norms[2], y))  # type: ignore[arg-type]
        # The pool before the rectifier: they commute, and it then sees a quarter.
        return leaky_relu(functional.max_pool2d(total, 2))


def _norm(filters: int) -> OffsetNorm2d:
    return OffsetNorm2d(filters, scale=True, eps=1e-5)


@final
class ResNet12(nn.Module):
    """Four residual blocks of three 3×3 convolutions each, and the mean over the image.

    Images (n, channels, height, width) in [0, 1], of 16×16 or more, become features (n, dim), the
    filters of the last block.

    Args:
        channels: channels of the images.
        filters: of the four blocks.

    Source: Meta-Learning with Differentiable Convex Optimization (Lee et al., 2019), section 4.1,
    after TADAM (Oreshkin et al., 2018), without DropBlock. He-normal initial weights, for what
    goes out of a convolution, as in the former's code.
    """

    def __init__(self, *, channels: int, filters: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.dim = filters[-1]
        self.blocks = nn.ModuleList(
            _Block(i, o) for i, o in itertools.pairwise((channels, *filters))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, images: Tensor, statistics: Statistics = EACH_SET) -> Tensor:
        """Return features (n, dim) of images (n, channels, height, width)."""
        x = images
        for block in self.blocks:
            x = block(x, statistics)
        return x.mean((2, 3))


def resnet12(
    *, channels: int = 3, image_size: int = 84, filters: int = 64, wide: bool = True
) -> ResNet12:
    """Return ResNet-12 whose first block has so many filters.

    Wide, as in MetaOptNet: 64, 160, 320 and 640, features of 640, and 12,424,320 parameters.
    Otherwise each block doubles them: 64, 128, 256 and 512, features of 512, 7,996,800 parameters.

    Raises:
        ValueError: a size below one, or images smaller than 16×16.
    """
    check_sizes(channels=channels, filters=filters)
    halved(image_size, 4, up=False)
    factors = (2, 5, 10, 20) if wide else (2, 4, 8, 16)
    a, b, c, d = (filters * factor // 2 for factor in factors)
    return ResNet12(channels=channels, filters=(a, b, c, d))
