"""What a backbone is, and the checks of one of somebody's own before anything rests on it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bilevel_models.normalization import EACH_SET, Statistics
from bilevel_models.refusals import check_layers

__all__ = ["Backbone", "check_backbone"]


class Backbone(Protocol):
    """A network h: images (n, channels, height, width) in [0, 1] to features (n, dim)."""

    dim: int

    def __call__(self, images: Tensor, statistics: Statistics = ...) -> Tensor:
        """Return the features, normalised with the statistics asked for."""
        ...


def check_backbone(name: str, backbone: object, options: dict[str, Any]) -> None:
    """Refuse what is no `Backbone` for images of the given size, by passing two black ones.

    Args:
        name: the model's.
        backbone: what was made under that name.
        options: with `channels` and `image_size`; without them no image is passed.

    Raises:
        ValueError: it has no `dim`, other features than that, or layers that may not be there.
    """
    if not isinstance(backbone, nn.Module):
        kind = type(backbone).__name__
        raise ValueError(f"model {name!r} is a {kind}: expected an nn.Module")  # noqa: TRY004
    check_layers(backbone)
    dim: object = getattr(backbone, "dim", None)
    if type(dim) is not int:
        raise ValueError(f"model {name!r}: dim={dim!r}: expected the number of its features")
    if not {"channels", "image_size"} <= options.keys():
        return
    weight = next(iter(backbone.parameters()), torch.empty(()))
    size = options["image_size"]
    images = torch.zeros(2, options["channels"], size, size, dtype=weight.dtype)
    try:
        with torch.no_grad():
            features = backbone(images.to(weight.device), EACH_SET)
    except Exception as error:  # a module of somebody's own can fail in any way
        line = " ".join(str(error).split())
        raise ValueError(
            f"model {name!r} cannot take images {tuple(images.shape)} as model(images, "
            f"statistics): {type(error).__name__}: {line}"
        ) from error
    shape = getattr(features, "shape", None)
    if shape != (2, dim):
        found = type(features).__name__ if shape is None else str(tuple(shape))
        raise ValueError(
            f"model {name!r}: the features of 2 images are {found}: expected (2, {dim}), by its dim"
        )
