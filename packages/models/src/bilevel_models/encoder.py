"""Encode once: from the images of episodes to the features that the inner loop runs on.

In a hyper-representation the inner variable never enters the backbone. So what the inner loop sees
of λ is the features of the episode's images, not the network: each image goes through the backbone
once forward, the inner loop runs on the features for as many steps as it likes, and autograd takes
its hypergradient in the features through the backbone once backward. The result is Algorithm 1's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bilevel_models.normalization import EACH_SET, RUNNING, Normalization, Statistics
from bilevel_models.refusals import check_layers

__all__ = ["Encoder", "as_images"]


def as_images(pixels: NDArray[np.uint8 | np.float32], device: torch.device | str = "cpu") -> Tensor:
    """Return pixels (…, height, width, channels) as images (…, channels, height, width) in [0, 1].

    Features, which are float32, stay what they are. The result keeps the pixels' order in memory
    (channels last), which convolutions prefer.
    """
    on_device = torch.from_numpy(pixels).to(device, non_blocking=True)
    if on_device.dtype == torch.uint8:
        on_device = on_device.to(torch.float32).div_(255)
    return on_device.movedim(-1, -3)


@runtime_checkable
class _TakesSets(Protocol):
    """A backbone that passes several sets through itself at once, as `ConvNet` does."""

    def forward_sets(self, images: Tensor, sizes: Sequence[int], *, track: bool) -> Tensor: ...


@final
@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A backbone with the choices that decide its features.

    Attributes:
        backbone: images (n, channels, height, width) to features (n, dim), a `Backbone`.
        normalization: whose statistics normalise an episode's images.
        unit_length: divide each feature vector by its Euclidean norm. Keeps the inner problem's
            curvature bounded while the representation learns, so that a fixed step size stays safe.
        bfloat16: run convolutions in bfloat16 autocast (weights and features stay float32).

    Raises:
        ValueError: the backbone has layers that normalise or drop by themselves.
    """

    backbone: nn.Module
    normalization: Normalization
    unit_length: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_layers(self.backbone)

    def __call__(self, *sets: Tensor, training: bool) -> tuple[Tensor, ...]:
        """Return the features (batch, n, dim) of each set, with their graph.

        Of one set alone, `episode` and `support` take the statistics of its images, in training and
        in test; `ghost` and `batch` are as of two.

        Args:
            sets: images (batch, n, channels, height, width) each: the support set, or support and
                query.
            training: use and track the statistics of training.

        Raises:
            ValueError: images of other shapes, or of more episodes in one set than in the other.

        Cost: one forward pass over the images; where there is a graph, memory for their activations
        until its backward pass, which is one as well.
        """
        if len(sets) == 1 and self.normalization is Normalization.SUPPORT:
            return replace(self, normalization=Normalization.EPISODE)._forward(
                *sets, training=training
            )
        return self._forward(*sets, training=training)

    def _forward(self, *sets: Tensor, training: bool) -> tuple[Tensor, ...]:
        """Pass the images through the backbone, at once where it can, or episode by episode.

        Args:
            sets: images (batch, …, channels, height, width) each, the support set first.
            training: as of `__call__`.
        """
        _check_images(sets)
        mode, backbone = self.normalization, self.backbone
        own = mode is Normalization.EPISODE or (training and mode is not Normalization.SUPPORT)
        if own and isinstance(backbone, _TakesSets) and sets[0].device.type == "cpu":
            return self._at_once(backbone, sets, training=training)
        whole_batch = mode is Normalization.BATCH or not (
            training or mode in (Normalization.EPISODE, Normalization.SUPPORT)
        )
        groups = 1 if whole_batch else len(sets[0])
        parts = [
            self._encode_group(group, training=training)
            for group in zip(*(images.chunk(groups) for images in sets), strict=True)
        ]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _at_once(
        self, backbone: _TakesSets, sets: Sequence[Tensor], *, training: bool
    ) -> tuple[Tensor, ...]:
        """Encode a meta-batch each of whose sets has its own statistics."""
        b, counts = len(sets[0]), [images.shape[1] for images in sets]
        mode = self.normalization
        track = training and mode is not Normalization.EPISODE
        if mode is Normalization.GHOST:
            images, sizes = _joined(sets, dim=1), [sum(counts)] * b
        else:
            images = _joined([images.flatten(0, 1) for images in sets], dim=0)
            each = [n for n in counts for _ in range(b)]
            sizes = each if mode is Normalization.EPISODE else [sum(each)]
        with self._autocast(images.device.type):
            h = self._finished(backbone.forward_sets(images, sizes, track=track))
        if mode is Normalization.GHOST:
            return tuple(h.view(b, sum(counts), -1).split_with_sizes(counts, dim=1))
        parts = h.split_with_sizes([b * n for n in counts])
        return tuple(part.view(b, n, -1) for part, n in zip(parts, counts, strict=True))

    def _encode_group(self, sets: Sequence[Tensor], *, training: bool) -> tuple[Tensor, ...]:
        """Encode whole episodes, sets (b, …) each, that may share statistics."""
        b, counts = len(sets[0]), [images.shape[1] for images in sets]
        flat = [images.flatten(0, 1) for images in sets]
        if self.normalization is Normalization.EPISODE:
            parts: Sequence[Tensor] = [self._features(images, EACH_SET) for images in flat]
        else:
            h = self._features(torch.cat(flat), self._statistics(counts[0], training))
            parts = h.split_with_sizes([b * n for n in counts])
        return tuple(part.view(b, n, -1) for part, n in zip(parts, counts, strict=True))

    def _statistics(self, support_size: int, training: bool) -> Statistics:
        if self.normalization is Normalization.SUPPORT:
            return Statistics(first=support_size)
        return Statistics(track=True) if training else RUNNING

    def _features(self, images: Tensor, statistics: Statistics) -> Tensor:
        """Return features (n, dim), of the weights' precision."""
        images = images.contiguous(memory_format=torch.channels_last)
        with self._autocast(images.device.type):
            h = self.backbone(images, statistics)
        return self._finished(h)

    def _finished(self, h: Tensor) -> Tensor:
        h = h if h.dtype == torch.float64 else h.float()
        return functional.normalize(h, dim=-1) if self.unit_length else h

    def _autocast(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()


def _check_images(sets: Sequence[Tensor]) -> None:
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


def _joined(sets: Sequence[Tensor], *, dim: int) -> Tensor:
    """Return images (…, channels, height, width) of all sets as one batch, channels last."""
    pixels = torch.cat([images.movedim(-3, -1) for images in sets], dim)
    return pixels.flatten(0, -4).movedim(-1, -3)
