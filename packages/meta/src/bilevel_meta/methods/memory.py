"""A memory of keys and labels: the answer is the label of the nearest key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.diet import Diet
from bilevel_meta.episodes import Batch
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import heads

__all__ = ["Memory", "Slots", "write"]

NOTHING = -2.0
"""Less than any cosine: the score of a class of which the memory holds no image."""


class Slots(NamedTuple):
    """A memory an episode.

    Attributes:
        keys: of unit length, (episodes, slots, dim).
        values: their labels, (episodes, slots), -1 where a slot is empty.
        ages: since a slot was written, (episodes, slots).
    """

    keys: Tensor
    values: Tensor
    ages: Tensor


@final
class Memory(HeadLearner):
    """Support images are written one after the other, queries read the nearest key.

    Trained by relu(⟨q, k₋⟩ - ⟨q, k₊⟩ + α) with k₊ and k₋ the nearest keys of the right and of a
    wrong label; keys are constants there. The memory is empty at the start of an episode, and
    queries do not write. (In the paper images are a stream and each presentation is an update of
    the weights; here a meta-batch is one.)

    Args:
        backbone: h; its features are taken at unit length.
        slots: of the memory; None takes one for each support image.
        margin: α.
        encoding: as of `HeadLearner`.

    Source: Learning to Remember Rare Events (Kaiser, Nachum, Roy, Bengio, 2017), section 2.
    """

    diet = Diet(way=5, shot=1, query=15, episodes=16)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        slots: int | None = None,
        margin: float = 0.1,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.slots, self.margin = slots, margin

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _Read:
        """Return the memory after all support images."""
        keys = functional.normalize(features.detach(), dim=-1)
        (episodes, n, dim), size = keys.shape, self.slots or keys.shape[1]
        memory = Slots(
            keys.new_zeros(episodes, size, dim),
            labels.new_full((episodes, size), -1),
            labels.new_zeros(episodes, size),
        )
        for i in range(n):
            memory = write(memory, keys[:, i], labels[:, i])
        return _Read(memory, way)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of the margin losses of the query images."""
        episodes = self.take(batch)
        scores = self.scores(episodes)
        self.accuracy = heads.accuracy(scores.detach(), episodes.query_labels).mean()
        right = functional.one_hot(episodes.query_labels, episodes.way).bool()
        positive = scores.masked_fill(~right, NOTHING).amax(dim=-1)
        negative = scores.masked_fill(right, NOTHING).amax(dim=-1)
        return (negative - positive + self.margin).relu().mean()


@final
@dataclass(frozen=True)
class _Read:
    memory: Slots
    way: int

    def logits(self, features: Tensor) -> Tensor:
        """Return the cosine with the nearest key of each class, (episodes, n, way)."""
        near = functional.normalize(features, dim=-1) @ self.memory.keys.mT
        classes = torch.arange(self.way, device=near.device)
        held = self.memory.values.unsqueeze(-1) == classes
        by_class = near.unsqueeze(-1).masked_fill(~held.unsqueeze(1), NOTHING)
        return by_class.amax(dim=-2)


def write(memory: Slots, query: Tensor, label: Tensor) -> Slots:
    """Return the memory after an image: q and its label, (episodes, dim) and (episodes,).

    Where the nearest key has the label it becomes (q + k) / ‖q + k‖, and its slot is new again;
    otherwise the pair takes the oldest slot, an empty one first.
    """
    empty = memory.values < 0
    near = (memory.keys @ query.unsqueeze(-1)).squeeze(-1).masked_fill(empty, NOTHING)
    best = near.argmax(dim=1, keepdim=True)
    found = memory.values.gather(1, best) == label.unsqueeze(1)
    oldest = memory.ages.masked_fill(empty, torch.iinfo(memory.ages.dtype).max).argmax(
        dim=1, keepdim=True
    )
    slot = torch.where(found, best, oldest)
    rows = torch.arange(len(query), device=query.device)
    old = torch.where(found, memory.keys[rows, slot[:, 0]], 0)
    key = functional.normalize(query + old, dim=-1)
    at = slot.unsqueeze(-1).expand(-1, -1, memory.keys.shape[-1])
    return Slots(
        memory.keys.scatter(1, at, key.unsqueeze(1)),
        memory.values.scatter(1, slot, label.unsqueeze(1)),
        (memory.ages + 1).scatter(1, slot, 0),
    )
