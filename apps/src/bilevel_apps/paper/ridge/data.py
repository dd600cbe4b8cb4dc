"""Linear data of which a few features inform, and ridge regression on them as a bilevel problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import final

import torch
from torch import Tensor

from bilevel_core import Problem

__all__ = ["Rows", "curvature", "draw_rows", "drawn", "join", "mape", "ridge"]


@final
@dataclass(frozen=True)
class Rows:
    """Examples x (n, features) with their targets y (n,)."""

    x: Tensor
    y: Tensor


def draw_rows(
    seed: int, sizes: Sequence[int], *, features: int, informative: int, noise: float
) -> list[Rows]:
    """Return data sets of y = ⟨w, x⟩ + noise · ‖w‖ · ε with x and ε standard normal.

    The first weights of w are uniform on [0, 1), and the others zero; ‖w‖ is the standard deviation
    of ⟨w, x⟩.

    Args:
        seed: of everything that is drawn.
        sizes: of the data sets, one each.
        features: numbers in x.
        informative: weights that are not zero.
        noise: its standard deviation, relative to that of the target without it.
    """
    source = torch.Generator().manual_seed(seed)
    w = torch.zeros(features, dtype=torch.float64)
    w[:informative] = torch.rand(informative, dtype=torch.float64, generator=source)
    x = torch.randn(sum(sizes), features, dtype=torch.float64, generator=source)
    disturbance = torch.randn(sum(sizes), dtype=torch.float64, generator=source)
    y = x @ w + noise * w.norm() * disturbance
    ends = list(accumulate(sizes, initial=0))
    return [Rows(x[a:b], y[a:b]) for a, b in pairwise(ends)]


def drawn(features: int, informative: int, noise: float) -> dict[str, str]:
    """Return in words, for a report's settings, what `draw_rows` draws."""
    return {
        "features": f"{features}, {informative} of them informative",
        "weights": "uniform on [0, 1); examples standard normal; no intercept",
        "noise": f"{noise} of the target's standard deviation",
    }


def join(parts: Sequence[Rows]) -> Rows:
    """Return data sets as one."""
    return Rows(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))


def ridge(train: Rows, held: Rows) -> Problem:
    """Return L_λ(w) = ‖X w - y‖² + Σ_i exp(λ_i) w_i² and E(w) = ‖X′ w - y′‖², from w_0 = 0.

    λ has one entry a feature, or one for all of them.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Appendix C.
    """

    def inner(w: Tensor, lam: Tensor) -> Tensor:
        return ((train.x @ w - train.y) ** 2).sum() + (lam.exp() * w**2).sum()

    def outer(w: Tensor, lam: Tensor) -> Tensor:
        del lam
        return ((held.x @ w - held.y) ** 2).sum()

    return Problem(inner=inner, outer=outer, init=lambda lam: lam.new_zeros(train.x.shape[1]))


def curvature(x: Tensor, largest: float) -> float:
    """Return the largest eigenvalue of ∇²L where all penalties are `largest`, 2 (‖X‖² + largest).

    Args:
        x: the training examples X, (n, features).
        largest: exp λ.
    """
    return 2 * (float(torch.linalg.matrix_norm(x, 2)) ** 2 + largest)


def mape(w: Tensor, rows: Rows) -> Tensor:
    """Return the mean absolute percentage error 100/n Σ |(y - ⟨w, x⟩) / y|."""
    return 100 * ((rows.x @ w - rows.y) / rows.y).abs().mean()
