"""Backbones by name, so that a configuration can choose one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from bilevel_models.convnet import c4l, omniglot_net
from bilevel_models.normalization import Statistics

__all__ = ["Backbone", "create_model", "list_models", "register_model"]


class Backbone(Protocol):
    """A network h: images (n, channels, height, width) in [0, 1] to features (n, dim)."""

    dim: int

    def __call__(self, images: Tensor, statistics: Statistics = ...) -> Tensor:
        """Return the features, normalised with the statistics asked for."""
        ...


_MODELS: dict[str, Callable[..., nn.Module]] = {"omniglot-net": omniglot_net, "c4l": c4l}


def list_models() -> tuple[str, ...]:
    """Return the names that `create_model` knows, sorted."""
    return tuple(sorted(_MODELS))


def register_model(name: str, make: Callable[..., nn.Module]) -> None:
    """Add a backbone under a new name; `make(**options)` returns a module that is a `Backbone`.

    Raises:
        ValueError: the name is taken.
    """
    if name in _MODELS:
        raise ValueError(f"model {name!r} is registered already: choose another name")
    _MODELS[name] = make


def create_model(name: str, **options: Any) -> nn.Module:
    """Return a new backbone with fresh weights, drawn from torch's global generator.

    Args:
        name: one of `list_models()`.
        options: the keyword arguments of its function, such as `channels`, `image_size`, `filters`.

    Raises:
        ValueError: no such model, no such option, or a value that it refuses.
    """
    if name not in _MODELS:
        raise ValueError(f"no model {name!r}: choose one of {', '.join(list_models())}")
    known = inspect.signature(_MODELS[name]).parameters
    if unknown := options.keys() - known.keys():
        raise ValueError(
            f"model {name!r} has no option {', '.join(sorted(unknown))}: it has {', '.join(known)}"
        )
    return _MODELS[name](**options)
