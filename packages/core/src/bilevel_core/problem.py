"""A bilevel problem as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

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
        batches: where the inner objective is stochastic, what step t sees of the data. `batches(t)`
            is called for t = 1 … T and its value handed on as `inner(w, lam, batch)`. It must be a
            function of t alone: engines that run a step again rely on the same batch.

    All are functions of their arguments alone. Dropout and the like draw in `batches`, from a
    generator seeded with t; an inner objective that draws itself is refused but for `Unrolled` and
    `Direct` in PyTorch. Nothing looks for draws in `outer` and `init`.

    In JAX, what `inner` and `outer` capture from outside is compiled in at first use: data that
    change come in through λ or `batches`, or with a new problem.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 2, 5 and 6.
    """

    inner: Callable[..., Array]
    outer: Callable[[Tree, Tree], Array]
    init: Callable[[Tree], Tree]
    batches: Callable[[int], Any] | None = None

    def inner_at(self, t: int) -> Callable[[Tree, Tree], Array]:
        """Return the inner objective of step t."""
        if self.batches is None:
            return self.inner
        batch = self.batches(t)
        return lambda w, lam: self.inner(w, lam, batch)
