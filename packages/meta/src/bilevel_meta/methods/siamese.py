"""A Siamese network: are two images of one class?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import heads

if TYPE_CHECKING:
    from bilevel_meta.episodes import Batch

__all__ = ["Siamese"]


@final
class Siamese(HeadLearner):
    """p(x, x') = σ(Σ_j α_j |h_j(x) - h_j(x')| + β); a class scores the mean p of its images.

    Trained on all pairs of a query and a support image of an episode, pairs of one class weighing
    as much together as the others. The paper draws pairs from the whole training set; the embedding
    here is any backbone. Feed-forward in λ.

    Source: Siamese Neural Networks for One-shot Image Recognition (Koch, Zemel, Salakhutdinov,
    2015), section 3.
    """

    diet = Diet(way=20, shot=1, query=3, episodes=2)

    def __init__(self, backbone: nn.Module | str, **encoding: Unpack[Encoding]) -> None:
        super().__init__(backbone, **encoding)
        self.weights = nn.Parameter(torch.full((self.dim,), -1 / self.dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the log-odds (…, m, n) of features (…, m, dim) and (…, n, dim)."""
        return (first.unsqueeze(-2) - second.unsqueeze(-3)).abs() @ self.weights + self.bias

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _Pairs:
        """Return the support set with its labels."""
        return _Pairs(self, features, heads.one_hot(labels, way, features))

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean binary cross-entropy over pairs, half of it that of pairs of a class."""
        episodes = self.take(batch)
        sets = episodes.support, episodes.query
        support, query = self.encoder(*sets, training=self.training)
        odds = self.pairs(query, support)
        same = episodes.query_labels.unsqueeze(-1) == episodes.support_labels.unsqueeze(-2)
        each = functional.binary_cross_entropy_with_logits(odds, same.to(odds), reduction="none")
        return 0.5 * (each[same].mean() + each[~same].mean())


@final
@dataclass(frozen=True)
class _Pairs:
    learner: Siamese
    support: Tensor
    targets: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return the logarithm of each class's mean p."""
        log_p = functional.logsigmoid(self.learner.pairs(features, self.support)).unsqueeze(-1)
        counts = self.targets.sum(dim=1).unsqueeze(1)
        others = self.targets.unsqueeze(1) == 0
        return log_p.masked_fill(others, -torch.inf).logsumexp(dim=-2) - counts.log()
