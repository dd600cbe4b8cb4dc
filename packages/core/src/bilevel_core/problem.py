"""A bilevel problem as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Array, Tree

__all__ = ["Problem"]


@final
@dataclass(frozen=True, kw_only=True)
class Problem:
    """Minimise E(w_T(λ), λ) over λ, where w_T comes from T steps on L_λ that start at Φ_0(λ).

    Attributes:
        inner: L, the inner objective: `inner(w, lam)` returns a scalar array.
        outer: E, the outer objective: `outer(w, lam)` returns a scalar array. It may depend on λ
            directly as well as through w.
        init: Φ_0: `init(lam)` returns the parameters w_0, a tree of floating-point arrays.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 2, 5 and 6.
    """

    inner: Callable[[Tree, Tree], Array]
    outer: Callable[[Tree, Tree], Array]
    init: Callable[[Tree], Tree]
