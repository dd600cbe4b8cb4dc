# %% [markdown]
# # A backbone of your own
#
# A backbone turns images into features. Here is one that pools a picture into strips, written in
# a file of your own and trained by the ordinary commands.

# %% [markdown]
# ## The module
#
# It needs an attribute `dim`, the number of its features, and `forward(images, statistics)`.
# Layers that normalise are told whose statistics to use; `OffsetNorm2d` does that. (torch's
# `BatchNorm2d` would use those of whatever images happen to be beside, and is refused: see [whose
# statistics](../explain/statistics.md).)

# %%
import torch
from torch import nn

from bilevel_models import OffsetNorm2d, Statistics, register_model


class Strips(nn.Module):
    """Two convolutions, pooled into horizontal strips."""

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False)
        self.first_norm = OffsetNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.second_norm = OffsetNorm2d(32)
        self.pool = nn.AdaptiveAvgPool2d((4, 1))
        self.dim = 32 * 4

    def forward(self, images: torch.Tensor, statistics: Statistics) -> torch.Tensor:
        hidden = self.first_norm(self.first(images), statistics).relu()
        hidden = self.second_norm(self.second(hidden), statistics).relu()
        return self.pool(hidden).flatten(1)


register_model("strips", Strips)
