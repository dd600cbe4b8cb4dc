"""Normalisation inside networks whose own code passes images and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import final

from torch import Tensor, nn

from bilevel_models.normalization import OffsetNorm2d, Statistics

__all__ = ["AmbientNorm2d", "explicit_norms", "using"]

# Parts of timm's `BatchNormAct2d` that follow the normalisation, in order.
_AFTER = ("drop", "act")
# Of the pass under way in this thread or task; others have their own.
_STATISTICS: ContextVar[Statistics] = ContextVar("statistics")


@contextmanager
def using(statistics: Statistics) -> Iterator[None]:
    """Let every `AmbientNorm2d` called within take its means and variances from there."""
    token = _STATISTICS.set(statistics)
    try:
        yield
    finally:
        _STATISTICS.reset(token)


@final
class AmbientNorm2d(nn.Module):
    """`OffsetNorm2d` with the statistics of the surrounding `using`.

    Args:
        norm: what normalises.
    """

    def __init__(self, norm: OffsetNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (images, channels, height, width).

        Raises:
            LookupError: there is no surrounding `using`.
        """
        y: Tensor = self.norm(x, _STATISTICS.get())
        return y


def explicit_norms(network: nn.Module) -> None:
    """Replace each `BatchNorm2d` in a network by an `AmbientNorm2d` with its weights.

    What a kind of it does after it has normalised, as timm's do, is done after it.
    """
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            new: nn.Module = AmbientNorm2d(_explicit(module))
            after = [part for name in _AFTER if (part := getattr(module, name, None)) is not None]
            network.set_submodule(path, nn.Sequential(new, *after) if after else new)


def _explicit(old: nn.BatchNorm2d) -> OffsetNorm2d:
    momentum = 0.1 if old.momentum is None else old.momentum
    new = OffsetNorm2d(old.num_features, scale=True, eps=old.eps, momentum=momentum)
    new.weight, new.bias = old.weight, old.bias
    if old.running_mean is not None and old.running_var is not None:
        new.running_mean, new.running_var = old.running_mean, old.running_var
    return new
