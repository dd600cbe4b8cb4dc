"""What would be wrong without a word: layers that go their own way, and second derivatives."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["check_layers", "refuse_second_derivatives"]


def check_layers(backbone: nn.Module) -> None:
    """Refuse layers by which features are no function of images, weights and `Statistics`.

    Raises:
        ValueError: there is one, in training mode.
    """
    for name, layer in backbone.named_modules():
        where = f"{name or 'the backbone'} is a {type(layer).__name__} in training mode"
        if isinstance(layer, _BatchNorm) and layer.training:
            raise ValueError(
                f"{where}: it would normalise an image by those beside it, whatever the "
                "Normalization: use OffsetNorm2d, which is told its statistics, or call eval() on "
                "it where its averages are to stay"
            )
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            raise ValueError(
                f"{where}: the same image would have other features each time: leave it out, or "
                "call eval() on it"
            )


def refuse_second_derivatives(
    what: str = "a head of descend or closed_form",
    instead: str = "use ridge, or run plain steps on zeros, logits and cross_entropy",
) -> None:
    """Refuse a backward pass that is recorded: autograd would leave its own steps out of the graph.

    `torch.autograd.function.once_differentiable` does not notice where `torch.autograd.grad` is
    asked for chosen inputs, and the second derivative would be silently wrong.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(
            f"a gradient was asked for with create_graph=True, but {what} can be differentiated "
            f"only once: leave create_graph out, or {instead}"
        )
