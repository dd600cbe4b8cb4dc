"""SNAIL: an episode is a sequence, read by causal convolutions and attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.class_means import require_even
from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner
from bilevel_models import heads

__all__ = ["Snail"]


@final
class Snail(HeadLearner):
    """Logits at the end of the sequence (h(x_1), y_1), …, (h(x_S), y_S), (h(x), 0).

    Attention, temporal convolutions, attention, temporal convolutions, attention, linear; each
    block appends its output to its input. Nothing before a position depends on it, so the support
    images pass the blocks once and each query adds the last position alone. Feed-forward in λ; the
    order of the support images matters.

    Args:
        backbone: h.
        way: classes an episode; the labels of the sequence and the outputs are so many.
        shot: support images a class; with `way` it decides how many convolutions there are.
        filters: of each convolution; the attention blocks have keys and values in proportion.
        encoding: as of `HeadLearner`.

    Source: A Simple Neural Attentive Meta-Learner (Mishra, Rohaninejad, Chen, Abbeel, 2018),
    sections 3 and 4.1, figure 2.
    """

    diet = Diet(way=5, shot=1, query=15, episodes=4)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        way: int,
        shot: int = 1,
        filters: int = 128,
        **encoding: Unpack[Encoding],
    ) -> None:
        super().__init__(backbone, **encoding)
        self.way, self.shot = way, shot
        length, dim = way * shot + 1, self.dim + way
        blocks: list[nn.Module] = []
        for size in (filters // 4, filters, 2 * filters):
            if blocks:
                for k in range(max(1, math.ceil(math.log2(length)))):
                    blocks.append(TemporalConvolution(dim, filters, 2**k))
                    dim += filters
            blocks.append(CausalAttention(dim, 2 * size, size))
            dim += size
        self.blocks, self.output = nn.ModuleList(blocks), nn.Linear(dim, way)

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> _Sequence:
        """Return what every block makes of the support images.

        Raises:
            ValueError: another way or number of support images than the network was made for, or
                more of one class than of another.
        """
        if (way, features.shape[1]) != (self.way, self.way * self.shot):
            raise ValueError(
                f"way={way} with {features.shape[1]} support images: the network was made for "
                f"way={self.way} and shot={self.shot}: use those, or make and train another one"
            )
        require_even(labels, way, "snail")
        x = torch.cat((features, heads.one_hot(labels, way, features)), dim=-1)
        inputs = []
        for block in self.blocks:
            inputs.append(x)
            x = block(x)
        return _Sequence(self, tuple(inputs))


@final
@dataclass(frozen=True)
class _Sequence:
    learner: Snail
    inputs: tuple[Tensor, ...]

    def logits(self, features: Tensor) -> Tensor:
        """Return (episodes, n, way), each query the end of a sequence of its own."""
        x = torch.cat((features, features.new_zeros(*features.shape[:2], self.learner.way)), dim=-1)
        for block, before in zip(self.learner.blocks, self.inputs, strict=True):
            x = cast("CausalAttention | TemporalConvolution", block).last(before, x)
        scores: Tensor = self.learner.output(x)
        return scores


@final
class TemporalConvolution(nn.Module):
    """x_t ↦ [x_t, tanh(a_t) ∘ σ(b_t)], (a_t, b_t) = U x_{t-d} + V x_t, d the dilation."""

    def __init__(self, dim: int, filters: int, dilation: int) -> None:
        super().__init__()
        self.now, self.dilation = nn.Linear(dim, 2 * filters), dilation
        self.past = nn.Linear(dim, 2 * filters, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, dim + filters) of (batch, length, dim)."""
        past = functional.pad(x, (0, 0, self.dilation, 0))[:, : x.shape[1]]
        return self._joined(x, self.now(x) + self.past(past))

    def last(self, before: Tensor, x: Tensor) -> Tensor:
        """Return the same for positions x (batch, n, dim), each next after all of `before`."""
        total = self.now(x)
        if before.shape[1] >= self.dilation:
            total = total + self.past(before[:, -self.dilation]).unsqueeze(1)
        return self._joined(x, total)

    def _joined(self, x: Tensor, total: Tensor) -> Tensor:
        a, b = total.chunk(2, dim=-1)
        return torch.cat((x, a.tanh() * b.sigmoid()), dim=-1)


@final
class CausalAttention(nn.Module):
    """x_t ↦ [x_t, Σ_{s≤t} softmax_s(⟨q_t, k_s⟩ / √keys) v_s].

    Queries and keys begin as the same map: a position then looks most at those that are like it,
    and need not find out first that this is of use.
    """

    def __init__(self, dim: int, keys: int, values: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, keys), nn.Linear(dim, keys)
        self.query.load_state_dict(self.key.state_dict())
        self.value = nn.Linear(dim, values)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, dim + values) of (batch, length, dim)."""
        return torch.cat((x, self.weights(x) @ self.value(x)), dim=-1)

    def weights(self, x: Tensor) -> Tensor:
        """Return how much each position looks at each, rows that sum to one."""
        scores = self._scores(self.query(x), self.key(x))
        later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(dim=-1)

    def last(self, before: Tensor, x: Tensor) -> Tensor:
        """Return the same for positions x (batch, n, dim), each next after all of `before`."""
        query = self.query(x)
        old = self._scores(query, self.key(before))
        own = (query * self.key(x)).sum(dim=-1, keepdim=True) / query.shape[-1] ** 0.5
        looks = torch.cat((old, own), dim=-1).softmax(dim=-1)
        seen = looks[..., :-1] @ self.value(before) + looks[..., -1:] * self.value(x)
        return torch.cat((x, seen), dim=-1)

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        scores: Tensor = query @ key.mT / query.shape[-1] ** 0.5
        return scores
