"""Matching networks: attention over the support images, whose labels it carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import heads

__all__ = ["Matching"]


@final
class Matching(HeadLearner):
    """p(y | x) = Σ_i a(x, x_i) [y_i = y], a = softmax over i of τ cos(f(x), g(x_i)).

    Without a temperature τ no image is ever surer of its class than e² / (e² + n - 1), because
    cosines end at ±1; so τ is learned. Feed-forward in λ: there is no inner problem.

    Args:
        backbone: what f and g share.
        temperature: τ at first.
        euclidean: -‖f - g‖² in place of the cosine.
        reads: full context embeddings with so many read-outs; 0 leaves them out. g is then the
            features plus a bidirectional LSTM over the support set, f the features plus an LSTM
            that attends to it. The order of the support images then matters.
        encoding: as of `HeadLearner`.

    Source: Matching Networks for One Shot Learning (Vinyals et al., 2016), Eqs. 1 and 2, sections
    2.1.2 and A.
    """

    diet = Diet(way=5, shot=1, query=15, episodes=1)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        temperature: float = 10.0,
        euclidean: bool = False,
        reads: int = 0,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.euclidean, self.reads = euclidean, reads
        if reads:
            self.context = nn.LSTM(self.dim, self.dim, batch_first=True, bidirectional=True)
            self.reader = nn.LSTMCell(2 * self.dim, self.dim)

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _Attention:
        """Return the support set, embedded in its context."""
        g = features
        if self.reads:
            forth, back = self.context(features)[0].chunk(2, dim=-1)
            g = features + forth + back
        return _Attention(learner=self, support=g, targets=heads.one_hot(labels, way, g))

    def read(self, features: Tensor, support: Tensor) -> Tensor:
        """Return f, the features after `reads` looks at the support set."""
        start = features.flatten(0, 1)
        f, cell, seen = start, torch.zeros_like(start), torch.zeros_like(start)
        for _ in range(self.reads):
            f, cell = self.reader(torch.cat((start, seen), dim=-1), (f, cell))
            f = f + start
            looks = (f.view_as(features) @ support.mT).softmax(dim=-1)
            seen = (looks @ support).flatten(0, 1)
        return f.view_as(features)


@final
@dataclass(frozen=True, kw_only=True)
class _Attention:
    learner: Matching
    support: Tensor
    targets: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return log p, (episodes, n, way)."""
        f, g = self.learner.read(features, self.support), self.support
        if self.learner.euclidean:
            near = -torch.cdist(f, g, compute_mode="donot_use_mm_for_euclid_dist").square()
        else:
            near = functional.normalize(f, dim=-1) @ functional.normalize(g, dim=-1).mT
        attention = (near * self.learner.log_temperature.exp()).log_softmax(dim=-1)
        others = self.targets.unsqueeze(1) == 0
        return attention.unsqueeze(-1).masked_fill(others, -math.inf).logsumexp(dim=-2)
