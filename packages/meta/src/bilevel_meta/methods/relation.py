"""Relation networks: a learned comparison of feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.class_means import class_means, require_even
from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import ConvNet, OffsetNorm2d, heads

if TYPE_CHECKING:
    from bilevel_meta.episodes import Batch

__all__ = ["Relation"]


@final
class Relation(HeadLearner):
    """Scores σ(g([Σ_i∈k h(x_i); h(x)])), g a small convolutional network on feature maps.

    Trained by the squared distance of the scores to the one-hot labels. The maps of several images
    of a class are summed. Inside g each pair is normalised by itself (the paper's batch norm makes
    a query's score depend on the other pairs), and maps are pooled while they have four rows.

    Args:
        backbone: its features are maps (channels, side, side), flattened.
        channels: of those maps; None takes a `ConvNet`'s own, and of others dim: maps of one point.
        width: filters of g.
        encoding: as of `HeadLearner`.

    Raises:
        ValueError: maps that are not square.

    Source: Learning to Compare: Relation Network for Few-Shot Learning (Sung et al., 2018), Eqs. 1
    and 2.
    """

    diet = Diet(way=5, shot=1, query=15, episodes=1)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        channels: int | None = None,
        width: int = 64,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.channels = channels or _channels(self.backbone) or self.dim
        self.side = round((self.dim / self.channels) ** 0.5)
        if self.channels * self.side**2 != self.dim:
            raise ValueError(
                f"channels={self.channels}: {self.dim} features are no square maps of so many "
                "channels: give the filters of the backbone's last layer"
            )
        layers: list[nn.Module] = []
        side, before = self.side, 2 * self.channels
        for _ in range(2):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU()]
            if side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            before = width
        last = nn.Linear(width * side**2, 8), nn.ReLU(), nn.Linear(8, 1)
        self.relation = nn.Sequential(*layers, nn.Flatten(), *last)

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _Related:
        """Return the sum of each class's maps.

        Raises:
            ValueError: classes with more images than others, whose sums would be larger.
        """
        require_even(labels, way, "relation")
        counts = heads.one_hot(labels, way, features).sum(dim=1).unsqueeze(-1)
        return _Related(self, class_means(features, labels, way) * counts)

    def relate(self, classes: Tensor, features: Tensor) -> Tensor:
        """Return g (episodes, n, way) of classes (episodes, way, dim) and (episodes, n, dim)."""
        (b, way, _), n = classes.shape, features.shape[1]
        shape = b, n, way, self.channels, self.side, self.side
        maps = (
            classes.unsqueeze(1).expand(-1, n, -1, -1).reshape(shape),
            features.unsqueeze(2).expand(-1, -1, way, -1).reshape(shape),
        )
        scores: Tensor = self.relation(torch.cat(maps, dim=3).flatten(0, 2))
        return scores.view(b, n, way)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean squared distance of the scores to the one-hot labels."""
        episodes = self.take(batch)
        scores = self.scores(episodes).sigmoid()
        return functional.mse_loss(
            scores, heads.one_hot(episodes.query_labels, episodes.way, scores)
        )


def _channels(backbone: nn.Module) -> int | None:
    if not isinstance(backbone, ConvNet):
        return None
    return cast("OffsetNorm2d", backbone.norms[-1]).bias.numel()


@final
@dataclass(frozen=True)
class _Related:
    learner: Relation
    classes: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return the scores before σ."""
        return self.learner.relate(self.classes, features)
