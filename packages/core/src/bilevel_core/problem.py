"""A bilevel problem as data."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

from bilevel_core.types import Array, Tree

__all__ = ["Passed", "Problem"]


@final
class Passed:
    """What a problem was found good with (validation.py), for each dynamics.

    Dynamics that are made of numbers are known by those again. Others, which may hold anything, are
    not kept: what is remembered of them goes with them.
    """

    def __init__(self) -> None:
        self._by_value: dict[Hashable, set[Hashable]] = {}
        self._by_object: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()

    def of(self, dynamics: Any) -> set[Hashable] | None:
        """Return a set to remember in, or None where the dynamics cannot be found again."""
        value = _value(dynamics)
        if value is not None:
            return self._by_value.setdefault(value, set())
        try:
            return self._by_object.setdefault(dynamics, set())
        except TypeError:  # not hashable, or not to be held weakly
            return None


def _value(thing: Any) -> Hashable | None:
    """Return what stands for a number, or for a dataclass made of them."""
    if isinstance(thing, int | float | str | None):
        return (type(thing), thing)
    if not is_dataclass(thing) or isinstance(thing, type):
        return None
    parts = tuple(_value(getattr(thing, part.name)) for part in fields(thing))
    return None if None in parts else (type(thing), parts)


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

    Where a solve is given `data`, each of the four has it as its last argument: `inner(w, lam,
    data)`, `outer(w, lam, data)`, `init(lam, data)`, and `batches(t, data)`, whose value stands in
    the place of the data in `inner`. So one problem serves any number of tasks: it is checked once,
    and in JAX compiled once.

    All are functions of their arguments alone. Dropout and the like draw in `batches`, from a
    generator seeded with t; an objective that draws itself is refused but for `Unrolled` and
    `Direct` in PyTorch.

    In JAX, what `inner` and `outer` capture from outside is compiled in at first use: data that
    change come in through λ, `data` or `batches`.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 2, 5 and 6.
    """

    inner: Callable[..., Array]
    outer: Callable[..., Array]
    init: Callable[..., Tree]
    batches: Callable[..., Any] | None = None
    passed: Passed = field(default_factory=Passed, init=False, repr=False, compare=False)
