"""Four-layer convolutional networks: the Omniglot net and C4L."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_models.backbones.fused.conv_block import Plan, block
from bilevel_models.backbones.fused.own_weights import own_block
from bilevel_models.backbones.sizes import check_sizes, halved
from bilevel_models.normalization import EACH_SET, OffsetNorm2d, Statistics

__all__ = ["ConvNet", "c4l", "omniglot_net"]


@final
class ConvNet(nn.Module):
    """`depth` blocks of [3×3 convolution without bias, normalisation, ReLU, max-pool], flattened.

    Args:
        channels: channels of the images.
        image_size: height and width of the images, in pixels.
        filters: filters of each convolution.
        pool: end each block in a 2×2 max-pool; otherwise its convolution has stride 2.
        depth: number of blocks.

    Images (n, channels, image_size, image_size) in [0, 1] become features (n, dim).

    Raises:
        ValueError: a size below one, or images too small for that many halvings.

    Source: Matching Networks for One Shot Learning (Vinyals et al., 2016), section 4.1;
    Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et al.,
    2018), section 5.2. Glorot's initial weights (Appendix D), uniform as in its code.
    """

    def __init__(
        self, *, channels: int, image_size: int, filters: int, pool: bool, depth: int = 4
    ) -> None:
        super().__init__()
        self.pool = pool
        check_sizes(channels=channels, filters=filters)
        # Pooling drops the last odd row and column; a strided convolution with padding keeps it.
        self.dim = filters * halved(image_size, depth, up=not pool) ** 2
        sizes = [channels] + [filters] * depth
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, kernel_size=3, stride=1 if pool else 2, padding=1, bias=False)
            for i, o in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(OffsetNorm2d(filters) for _ in range(depth))
        for weight in self.convolutions.parameters():
            nn.init.xavier_uniform_(weight)

    def forward(self, images: Tensor, statistics: Statistics = EACH_SET) -> Tensor:
        """Return features (n, dim) of images (n, channels, size, size)."""
        x = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x), statistics)
            if self.pool:  # before the rectifier: they commute, and it then sees a quarter
                x = functional.max_pool2d(x, 2)
            x = functional.relu(x)
        return torch.flatten(x, 1)

    def forward_sets(self, images: Tensor, sizes: Sequence[int], *, track: bool) -> Tensor:
        """Return features of several sets of images, each normalised by its own statistics.

        What `forward` gives set by set, in one pass that is faster on a CPU. Its gradient can be
        taken once, in the weights.

        Args:
            images: (n, channels, size, size).
            sizes: images of each set, in their order; their sum is n.
            track: let the running averages follow, set by set.
        """
        x = images
        layers = zip(self.convolutions, self.norms, strict=True)
        for convolution, norm in cast("Iterator[tuple[nn.Conv2d, OffsetNorm2d]]", layers):
            plan = Plan(
                sizes=tuple(sizes),
                first=x is images,
                pool=self.pool,
                eps=norm.eps,
                momentum=norm.momentum,
                running=(norm.running_mean, norm.running_var) if track else None,
            )
            x = block(x, convolution.weight, norm.bias, plan)
        return torch.flatten(x, 1)

    def forward_each(self, images: Tensor) -> Tensor:
        """Return features (tasks, n, dim) of images (tasks, n, channels, size, size).

        What `forward` gives task by task, each with its own statistics, in one pass whose
        derivative can be taken twice. Under `torch.func.functional_call` weights may have an axis
        over tasks in front: then each task has its own.

        Raises:
            NotImplementedError: the network pools; see `has_forward_each`.
        """
        if not self.has_forward_each:
            raise NotImplementedError("a network that pools passes task by task: call it")
        x = images.movedim(-3, -1)
        layers = zip(self.convolutions, self.norms, strict=True)
        for convolution, norm in cast("Iterator[tuple[nn.Conv2d, OffsetNorm2d]]", layers):
            x = own_block(x, convolution.weight, norm.bias, norm.eps)
        return x.movedim(-1, -3).flatten(2)

    @property
    def has_forward_each(self) -> bool:
        """Whether `forward_each` is at hand: it is of networks that do not pool."""
        return not self.pool


def omniglot_net(*, channels: int = 1, image_size: int = 28, filters: int = 64) -> ConvNet:
    """Return the strided network of the paper's Omniglot experiments.

    With its defaults: features of 2·2·64 = 256, and 111,424 parameters.
    """
    return ConvNet(channels=channels, image_size=image_size, filters=filters, pool=False)


def c4l(*, channels: int = 3, image_size: int = 84, filters: int = 32) -> ConvNet:
    """Return C4L, the max-pooled network of the paper's mini-ImageNet experiments.

    With its defaults: features of 5·5·32 = 800, and 28,640 parameters.
    """
    return ConvNet(channels=channels, image_size=image_size, filters=filters, pool=True)
