"""Encode once, pull back once: the bridge between a backbone and the inner loop.

In a hyper-representation the inner variable never enters the backbone. So what the inner loop sees
of λ is the features of the episode's images, not the network: each image goes through the backbone
once forward, the inner loop runs on the features for as many steps as it likes, and its
hypergradient in the features goes through the backbone once backward. The result is Algorithm 1's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bilevel_models.backbone import check_layers
from bilevel_models.normalization import EACH_SET, RUNNING, Normalization, Statistics
from bilevel_models.sets import check_images, joined, way_back

__all__ = ["Encoder", "Features", "as_images"]


def as_images(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Return pixels (…, height, width, channels) as images (…, channels, height, width) in [0, 1].

    The result keeps the pixels' order in memory (channels last), which convolutions prefer.
    """
    on_device = torch.from_numpy(pixels).to(device, non_blocking=True)
    return on_device.to(torch.float32).div_(255).movedim(-1, -3)


@final
@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of a meta-batch, cut off from the backbone, and the way back.

    Attributes:
        support: (batch, way*shot, dim), float32 or wider, no graph.
        query: (batch, way*query, dim), likewise.
        pull_back: adds the product of the backbone's Jacobian with (∂E/∂support, ∂E/∂query) to
            the `grad` of the backbone's parameters. Call it at most once: it frees the graph. Where
            nothing asks for a gradient, because the backbone is frozen, it does nothing.
    """

    support: Tensor
    query: Tensor
    pull_back: Callable[[Tensor, Tensor], None]


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

        What `encode` and `encode_set` give, for a loss that ordinary autograd differentiates: each
        image passes the backbone once forward and once backward.

        Args:
            sets: images (batch, n, channels, height, width) each: the support set, or support and
                query.
            training: use and track the statistics of training.

        Raises:
            ValueError: images of other shapes, or of more episodes in one set than in the other.
        """
        if len(sets) == 1 and self.normalization is Normalization.SUPPORT:
            return replace(self, normalization=Normalization.EPISODE)._forward(
                *sets, training=training
            )
        return self._forward(*sets, training=training)

    def encode(self, support: Tensor, query: Tensor, *, training: bool) -> Features:
        """Return the features of a meta-batch.

        Args:
            support: images (batch, way*shot, channels, height, width).
            query: images (batch, way*query, channels, height, width).
            training: use and track the statistics of training, and keep the graph for `pull_back`.

        Raises:
            ValueError: images of other shapes, or of more episodes in one set than in the other.

        Cost: one forward pass over the images; in training, memory for their activations.
        """
        with torch.set_grad_enabled(training):
            h_s, h_q = self._forward(support, query, training=training)
        pull_back = way_back(self.backbone, h_s, h_q)
        return Features(support=h_s.detach(), query=h_q.detach(), pull_back=pull_back)

    def encode_set(
        self, images: Tensor, *, training: bool
    ) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Return the features of a meta-batch whose episodes have one set each, and the way back.

        With `episode` and `support` an episode's statistics are those of its images, in training
        and in test; `ghost` and `batch` are as in `encode`.

        Args:
            images: (batch, n, channels, height, width).
            training: as of `encode`.

        Returns:
            Features (batch, n, dim), without a graph, and what takes their gradient and adds, once,
            to the `grad` of the backbone's parameters.

        Raises:
            ValueError: images of another shape.

        Cost: as `encode` for as many images.
        """
        mode = self.normalization
        # A support set by itself: the same, and `_at_once` takes it.
        mode = Normalization.EPISODE if mode is Normalization.SUPPORT else mode
        with torch.set_grad_enabled(training):
            (h,) = replace(self, normalization=mode)._forward(images, training=training)
        return h.detach(), way_back(self.backbone, h)

    def _forward(self, *sets: Tensor, training: bool) -> tuple[Tensor, ...]:
        """Pass the images through the backbone, at once where it can, or episode by episode.

        Args:
            sets: images (batch, …, channels, height, width) each, the support set first.
            training: as of `encode`.
        """
        check_images(sets)
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
            images, sizes = joined(sets, dim=1), [sum(counts)] * b
        else:
            images = joined([images.flatten(0, 1) for images in sets], dim=0)
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
