"""Meta-networks: fast weights, made from the gradients of the support images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.coordinatewise import lstm_cell, preprocessed
from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import heads

__all__ = ["MetaNetworks"]

P = 7.0
"""Of the preprocessing of gradients."""


@final
class MetaNetworks(HeadLearner):
    """Logits W h + W*_x h + b, with fast weights W*_x that a query x reads from a memory.

    Support image i writes W*_i, what a small network makes of each number of ∇_W of its loss, under
    the key u(h_i). A query reads Σ_i a_i W*_i, a the softmax of the cosines of u(h) and the keys.
    u(h) = relu(Q h) + relu(Q* h) has fast weights as well, what an LSTM makes of the gradients of
    the support images one after the other, as a fixed random layer judges u. All gradients are
    constants, and of linear layers, so each is a product of two vectors. (In the paper convolutions
    have fast weights too; here each image is encoded once.)

    Args:
        backbone: h.
        way: classes an episode.
        embedding: numbers of u.
        hidden: of the two networks that make fast weights.
        encoding: as of `HeadLearner`.

    Cost: beside the backbone, the networks on dim · embedding and dim · way numbers an image.

    Source: Meta Networks (Munkhdalai, Yu, 2017), section 3, Algorithm 1.
    """

    diet = Diet(way=5, shot=1, query=10, episodes=1)
    critic: Tensor

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        way: int,
        embedding: int = 64,
        hidden: int = 20,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.way = way
        self.slow = nn.Linear(self.dim, way)
        self.embed = nn.Linear(self.dim, embedding, bias=False)
        self.register_buffer("critic", torch.randn(way, embedding) / embedding**0.5)
        self.make = nn.Sequential(
            *(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, 1),
        )
        self.lstm_weight = nn.Parameter(torch.empty(4 * hidden, 2 + hidden).uniform_(-0.1, 0.1))
        self.lstm_bias = nn.Parameter(torch.zeros(4 * hidden))
        self.lstm_output = nn.Parameter(torch.empty(hidden).uniform_(-0.1, 0.1))

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _FastWeights:
        """Return the memory of the support images.

        Raises:
            ValueError: another way than that of W.
        """
        if way != self.way:
            raise ValueError(f"way={way}: the slow weights have way={self.way}: use that")
        y = heads.one_hot(labels, way, features)
        quick = self._quick_embedding(features, y)
        with torch.no_grad():
            slope = self.slow(features).softmax(dim=-1) - y
            gradient = slope.unsqueeze(-1) * features.unsqueeze(-2)
        fast = self.make(preprocessed(gradient, P)).squeeze(-1)
        return _FastWeights(self, quick, self.embedded(features, quick), fast)

    def embedded(self, features: Tensor, quick: Tensor) -> Tensor:
        """Return u, (episodes, n, embedding), at unit length."""
        u = self.embed(features).relu() + (features @ quick.mT).relu()
        return functional.normalize(u, dim=-1)

    def _quick_embedding(self, features: Tensor, y: Tensor) -> Tensor:
        """Return Q*, (episodes, embedding, dim)."""
        with torch.no_grad():
            inside = self.embed(features)
            slope = (inside.relu() @ self.critic.mT).softmax(dim=-1) - y
            back = slope @ self.critic * (inside > 0)
        (episodes, n, dim), size = features.shape, back.shape[-1]
        h = features.new_zeros(episodes * size * dim, len(self.lstm_output))
        c = h
        for i in range(n):
            gradient = back[:, i].unsqueeze(-1) * features[:, i].detach().unsqueeze(-2)
            x = preprocessed(gradient.flatten(), P)
            h, c = lstm_cell(x, h, c, self.lstm_weight, self.lstm_bias)
        return (h @ self.lstm_output).view(episodes, size, dim)


@final
@dataclass(frozen=True)
class _FastWeights:
    learner: MetaNetworks
    quick: Tensor
    keys: Tensor
    fast: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return (episodes, n, way), every query with fast weights of its own."""
        looks = (self.learner.embedded(features, self.quick) @ self.keys.mT).softmax(dim=-1)
        # Each memory's answer, then their mean: the same as the answer of the mean.
        answers = torch.einsum("eswd,eqd->eqsw", self.fast, features)
        fast = torch.einsum("eqs,eqsw->eqw", looks, answers)
        slow: Tensor = self.learner.slow(features)
        return slow + fast
