"""What the autograd functions of this package share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["refuse_second_derivatives", "without_autocast"]


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


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves alone what runs on a tensor's device.

    For a backward pass within autocast of a forward pass outside.
    """
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
