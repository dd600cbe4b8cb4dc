"""What learned optimisers do to every number of w alike: one small network, shared by all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilevel_meta.adaptation import Weights

__all__ = ["flat", "lstm_cell", "preprocessed", "unflat"]


def preprocessed(x: Tensor, p: float) -> Tensor:
    """Return (log|x| / p, sign x) where |x| ≥ e⁻ᵖ, else (-1, eᵖ x); shape (…, 2).

    Gradients of very different sizes become numbers of the size of one.

    Source: Learning to learn by gradient descent by gradient descent (Andrychowicz et al., 2016),
    appendix A.
    """
    large = x.abs() >= math.exp(-p)
    size = torch.where(large, x.abs(), 1.0).log() / p
    first = torch.where(large, size, -1.0)
    second = torch.where(large, x.sign(), math.exp(p) * x)
    return torch.stack((first, second), dim=-1)


def lstm_cell(
    x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the next (h, c), (n, hidden) each.

    Args:
        x: input, (n, inputs).
        h: output before, (n, hidden).
        c: cell before, (n, hidden).
        weight: of [x, h] for the gates input, forget, cell and output, (4 hidden, inputs + hidden).
        bias: (4 hidden,).
    """
    gates = torch.cat((x, h), dim=-1) @ weight.mT + bias
    i, f, g, o = gates.chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def flat(weights: Weights) -> Tensor:
    """Return all numbers of w, (n,), leaf after leaf."""
    return torch.cat([leaf.flatten() for leaf in weights.values()])


def unflat(numbers: Tensor, like: Weights) -> Weights:
    """Return the weights of those shapes that numbers (n,) are."""
    parts = torch.split(numbers, [leaf.numel() for leaf in like.values()])
    pairs = zip(like.items(), parts, strict=True)
    return {name: part.view_as(leaf) for (name, leaf), part in pairs}
