"""RN, the residual network of the paper's mini-ImageNet experiments."""

from __future__ import annotations

import itertools
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_models.backbones.recomputed import (
    Normalise,
    convolved_thrice,
    leaky_relu,
    recomputed,
    three_convolutions,
)
from bilevel_models.backbones.sizes import check_sizes
from bilevel_models.normalization import EACH_SET, OffsetNorm2d, Statistics

__all__ = ["ResidualNet", "rn"]


@final
class _Block(nn.Module):
    """pool(r(n₃(w₃ ∗ … r(n₁(w₁ ∗ x)))) + s ∗ x), r the leaky rectifier.

    There is no rectifier behind the sum, and a pool of 2×2 keeps the last odd row and column.
    """

    def __init__(self, channels: int, filters: int, *, kernel_size: int) -> None:
        super().__init__()
        self.convolutions = three_convolutions(channels, filters, kernel_size)
        self.norms = nn.ModuleList(OffsetNorm2d(filters) for _ in range(3))
        self.skip = nn.Conv2d(channels, filters, 1)

    def forward(self, x: Tensor, statistics: Statistics) -> Tensor:
        y = convolved_thrice(self.convolutions, self.norms, x, statistics)
        return recomputed(self._end, statistics, x, y)

    def _end(self, normalise: Normalise, x: Tensor, y: Tensor) -> Tensor:
        a = leaky_relu(normalise(self.norms[2], y))  # type: ignore[arg-type]
        # The sum is written over the skip, which no gradient needs.
        return functional.max_pool2d(self.skip(x).add_(a), 2, ceil_mode=True)


@final
class ResidualNet(nn.Module):
    """Four residual blocks, a 1×1 convolution, the mean over the image, another 1×1 convolution.

    Images (n, channels, height, width) in [0, 1], of any height and width, become features
    (n, dim), dim = 8 filters.

    Args:
        channels: channels of the images.
        filters: f, filters of the first block; the blocks have f, 3f/2, 2f and 4f, the two
            convolutions behind them 32f and 8f, each with a bias and a rectifier.
        kernel_size: of the convolutions in the blocks: 3 (the released code) or 1 (the text).

    Raises:
        ValueError: a size below one, or an even kernel.

    Cost: memory for training, mostly that of the outputs of the 3×3 convolutions: 10 MB an image of
    84×84 in float32; what follows them is computed again for the gradient.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), supplementary material; what it leaves open as in A Simple Neural Attentive
    Meta-Learner (Mishra et al., 2018), appendix, which it follows. Glorot-uniform initial weights,
    as in the released code; unlike there, every parameter is trained.
    """

    def __init__(self, *, channels: int, filters: int, kernel_size: int) -> None:
        super().__init__()
        check_sizes(channels=channels, filters=filters)
        if kernel_size not in (1, 3):
            raise ValueError(f"kernel_size={kernel_size}: use 3, or 1 as in the paper's text")
        widths = (channels, filters, filters * 3 // 2, filters * 2, filters * 4)
        self.dim = 8 * filters
        self.blocks = nn.ModuleList(
            _Block(i, o, kernel_size=kernel_size) for i, o in itertools.pairwise(widths)
        )
        self.before_mean = nn.Conv2d(widths[-1], 32 * filters, 1)
        self.after_mean = nn.Conv2d(32 * filters, self.dim, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, statistics: Statistics = EACH_SET) -> Tensor:
        """Return features (n, dim) of images (n, channels, height, width)."""
        x = images
        for block in self.blocks:
            x = block(x, statistics)
        x = functional.relu(self.before_mean(x)).mean((2, 3), keepdim=True)
        return torch.flatten(functional.relu(self.after_mean(x)), 1)


def rn(
    *, channels: int = 3, image_size: int = 84, filters: int = 64, kernel_size: int = 3
) -> ResidualNet:
    """Return RN.

    With its defaults: blocks of 64, 96, 128 and 256 filters, features of 512, and 3,805,696
    parameters (1,870,848 with kernel_size=1). Any `image_size` will do.
    """
    check_sizes(image_size=image_size)
    return ResidualNet(channels=channels, filters=filters, kernel_size=kernel_size)
