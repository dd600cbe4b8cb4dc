"""The sets of images of a meta-batch's episodes, and the way back from their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["check_images", "joined", "way_back"]


def check_images(sets: Sequence[Tensor]) -> None:
    """Refuse sets that are not (batch, n, channels, height, width) of one batch.

    Raises:
        ValueError: they are not.
    """
    if any(images.ndim != 5 or images.shape[0] != sets[0].shape[0] for images in sets):
        raise ValueError(
            "expected images (batch, n, channels, height, width), as many episodes in each set, "
            f"found shapes {' and '.join(str(tuple(images.shape)) for images in sets)}: give every "
            "set the images of the same episodes"
        )


def joined(sets: Sequence[Tensor], *, dim: int) -> Tensor:
    """Return images (…, channels, height, width) of all sets as one batch, channels last."""
    pixels = torch.cat([images.movedim(-3, -1) for images in sets], dim)
    return pixels.flatten(0, -4).movedim(-1, -3)


def way_back(backbone: nn.Module, *features: Tensor) -> Callable[..., None]:
    """Return what takes each feature tensor's gradient to the weights that made it.

    Features of a frozen backbone have no way back, and it does nothing. Those that a backbone made
    without a graph are refused by autograd: its weights would miss their gradient.
    """
    frozen = not any(parameter.requires_grad for parameter in backbone.parameters())

    def pull_back(*grads: Tensor) -> None:
        pairs = zip(features, grads, strict=True)
        asked = [(h, grad) for h, grad in pairs if h.requires_grad or not frozen]
        if asked:
            torch.autograd.backward([h for h, _ in asked], [grad for _, grad in asked])

    return pull_back
