"""A meta-batch of episodes as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from bilevel_data import EpisodeBatch
from bilevel_models import as_images

__all__ = ["Episodes", "to_device"]


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
    """

    support: Tensor
    query: Tensor
    support_labels: Tensor
    query_labels: Tensor
    way: int

    def parts(self, count: int) -> Iterator[Episodes]:
        """Yield the meta-batch in so many parts of as many episodes, which share its memory.

        Raises:
            ValueError: the episodes do not divide.
        """
        if len(self.support) % count:
            raise ValueError(f"{len(self.support)} episodes do not divide into {count} equal parts")
        size = len(self.support) // count
        tensors = (self.support, self.query, self.support_labels, self.query_labels)
        for support, query, support_labels, query_labels in zip(
            *(torch.split(tensor, size) for tensor in tensors), strict=True
        ):
            yield replace(
                self,
                support=support,
                query=query,
                support_labels=support_labels,
                query_labels=query_labels,
            )


def to_device(batch: EpisodeBatch, way: int, device: torch.device) -> Episodes:
    """Return sampled pixels as images, and their labels, on a device."""
    return Episodes(
        support=as_images(batch.support, device),
        query=as_images(batch.query, device),
        support_labels=torch.from_numpy(batch.support_labels).to(device),
        query_labels=torch.from_numpy(batch.query_labels).to(device),
        way=way,
    )
