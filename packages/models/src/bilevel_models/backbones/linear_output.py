"""A backbone with a linear layer at its end, whose outputs are the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from bilevel_models.normalization import EACH_SET, Statistics

__all__ = ["LinearOutputs", "LinearOutputsOfSets", "with_linear_outputs"]


class LinearOutputs(nn.Module):
    """h(x) = W g(x) + b, in the weights' precision also where g is computed in another.

    Images (n, channels, height, width) become features (n, outputs). Glorot-uniform W, b = 0.

    Args:
        network: g, a `Backbone`.
        outputs: how many.
    """

    def __init__(self, network: nn.Module, outputs: int) -> None:
        super().__init__()
        self.network, self.dim = network, outputs
        self.linear = nn.Linear(cast("int", network.dim), outputs)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor, statistics: Statistics = EACH_SET) -> Tensor:
        """Return features (n, outputs) of images (n, channels, height, width)."""
        return self._outputs(self.network(images, statistics))

    def _outputs(self, g: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(g.device.type):
            return cast("Tensor", self.linear(g))
        with torch.autocast(g.device.type, enabled=False):
            return cast("Tensor", self.linear(g.to(self.linear.weight.dtype)))


@final
class LinearOutputsOfSets(LinearOutputs):
    """The same on a network that passes several sets through itself at once."""

    def forward_sets(self, images: Tensor, sizes: Sequence[int], *, track: bool) -> Tensor:
        """Return what `forward` gives set by set; see the network's own `forward_sets`."""
        network = cast("Any", self.network)
        return self._outputs(network.forward_sets(images, sizes, track=track))


def with_linear_outputs(network: nn.Module, outputs: int) -> LinearOutputs:
    """Return a backbone of as many linear outputs of another one."""
    kind = LinearOutputsOfSets if hasattr(network, "forward_sets") else LinearOutputs
    return kind(network, outputs)
