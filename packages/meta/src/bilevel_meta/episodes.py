"""A meta-batch of episodes as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch
from torch import Tensor

from bilevel_data import EpisodeBatch
from bilevel_models import as_images

__all__ = ["Batch", "Episodes", "as_episodes", "to_device"]


@final
@dataclass(frozen=True, kw_only=True)
class Episodes:
    """A meta-batch on its device.

    Attributes:
        support: images (batch, way*shot, channels, height, width) in [0, 1].
        query: images (batch, way*query, channels, height, width).
        support_labels: classes 0 … way-1, int64 (batch, way*shot).
        query_labels: likewise, (batch, way*query).
        way: classes an episode.
        classes: which classes of the split the labels 0 … way-1 stand for, int64 (batch, way), a
            rotated copy being a class of its own; None where nobody asks.
    """

    support: Tensor
    query: Tensor
    support_labels: Tensor
    query_labels: Tensor
    way: int
    classes: Tensor | None = None

    def to(self, device: torch.device | str) -> Episodes:
        """Return the same meta-batch on another device."""
        return replace(
            self,
            support=self.support.to(device),
            query=self.query.to(device),
            support_labels=self.support_labels.to(device),
            query_labels=self.query_labels.to(device),
            classes=None if self.classes is None else self.classes.to(device),
        )

    def parts(self, count: int) -> Iterator[Episodes]:
        """Yield the meta-batch in so many parts of as many episodes, which share its memory.

        Raises:
            ValueError: the episodes do not divide.
        """
        if len(self.support) % count:
            raise ValueError(f"{len(self.support)} episodes do not divide into {count} equal parts")
        size = len(self.support) // count
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        for part in zip(*(torch.split(x, size) for x in tensors.values()), strict=True):
            yield replace(self, **dict(zip(tensors, part, strict=True)))

    def united(self) -> Episodes:
        """Return the same images as one set an episode, which is support and query at once."""
        pixels = [x.movedim(-3, -1) for x in (self.support, self.query)]  # as they lie in memory
        images = torch.cat(pixels, dim=1).movedim(-1, -3)
        labels = torch.cat((self.support_labels, self.query_labels), dim=1)
        return replace(
            self, support=images, query=images, support_labels=labels, query_labels=labels
        )


Batch: TypeAlias = Episodes | EpisodeBatch
"""A meta-batch, as tensors or as sampled pixels."""


def as_episodes(batch: Batch, device: torch.device) -> Episodes:
    """Return a meta-batch as tensors on a device."""
    if isinstance(batch, EpisodeBatch):
        return to_device(batch, batch.classes.shape[1], device)
    return batch if batch.support.device == device else batch.to(device)


def to_device(batch: EpisodeBatch, way: int, device: torch.device) -> Episodes:
    """Return sampled pixels as images, and their labels, on a device."""
    return Episodes(
        support=as_images(batch.support, device),
        query=as_images(batch.query, device),
        support_labels=torch.from_numpy(batch.support_labels).to(device),
        query_labels=torch.from_numpy(batch.query_labels).to(device),
        way=way,
        classes=torch.from_numpy(batch.classes).to(device),
    )
