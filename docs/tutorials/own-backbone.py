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

# %% [markdown]
# ## Try it
#
# `create_model` now knows it by name. It is checked as it is made: images go through it, and layers
# that would normalise or drop by themselves are refused.

# %%
from bilevel_models import Encoder, Normalization, create_model, heads

torch.manual_seed(0)
backbone = create_model("strips", channels=1, image_size=28)
encoder = Encoder(backbone=backbone, normalization=Normalization.GHOST, unit_length=True)
support, query = torch.rand(2, 5, 1, 28, 28), torch.rand(2, 15, 1, 28, 28)  # two episodes
h_support, h_query = encoder(support, query, training=True)
print("features", tuple(h_support.shape), tuple(h_query.shape))

# %% [markdown]
# Five steps of gradient descent train a head for each episode. The loss of the heads on the query
# images is an ordinary scalar, so one call brings its gradient back to the backbone:

# %%
targets = heads.one_hot(torch.arange(5).expand(2, 5), 5, h_support)
head = heads.descend(h_support, targets, steps=5, step_size=torch.tensor(0.1), scale=10.0)
labels = torch.arange(5).repeat(2, 3)
loss = heads.cross_entropy(heads.logits(head, h_query), labels).mean()
loss.backward()
print("gradient of the first filters", tuple(backbone.first.weight.grad.shape))

# %% [markdown]
# ## Train it
#
# Every command imports what the environment variable `BILEVEL_IMPORT` names. With the class and the
# call of `register_model` in a file `strips.py`:
#
# ```sh
# bilevel-data prepare glyphs --out glyphs.h5
# BILEVEL_IMPORT=strips.py bilevel-train --preset glyphs-5way-1shot --data glyphs.h5 --out runs/strips --set model.name=strips
# BILEVEL_IMPORT=strips.py bilevel-eval runs/strips
# ```
#
# A run's files never name a module to import: only you do.
