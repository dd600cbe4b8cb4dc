"""A bilevel problem as data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, final
from weakref import ref

from bilevel_core.types import Array, Tree

__all__ = ["Passed", "Problem"]


@final
class Passed:
    """What a problem was found good with (validation.py), for each dynamics.

    Dynamics that are made anew are known again by their class, their numbers and the functions that
    they hold. Nothing is kept alive for that: what is remembered of a function goes with it.
    """

    def __init__(self) -> None:
        self._found: set[Hashable] = set()
        self._by_value: dict[Hashable, Passed] = {}
        self._by_object: dict[int, tuple[ref[Any], Passed]] = {}

    def of(self, dynamics: Any) -> set[Hashable] | None:
        """Return a set to remember in, or None where the dynamics cannot be found again."""
        for path in (_parts(dynamics), (dynamics,)):
            node = self
            try:
                for part in path:
                    node = node._next(part)
            except TypeError:  # a part cannot be held weakly
                continue
            return node._found
        return None

    def _next(self, part: Any) -> Passed:
        if isinstance(part, VALUES):
            value = type(part), part
            if value not in self._by_value:
                self._by_value[value] = Passed()
            return self._by_value[value]
        table, key = self._by_object, id(part)
        if key not in table:
            table[key] = ref(part, lambda _: table.pop(key, None)), Passed()
        return table[key][1]


VALUES = (int, float, str, type(None))


def _parts(thing: Any) -> Iterator[Any]:
    """Yield what tells dynamics from others: classes, and what is in their fields."""
    if isinstance(thing, type) or not (is_dataclass(thing) or isinstance(thing, tuple)):
        yield thing
        return
    held = thing if isinstance(thing, tuple) else [getattr(thing, f.name) for f in fields(thing)]
    yield type(thing)
    yield len(held)
    for part in held:
        yield from _parts(part)


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
        passed: what the checks have found good; not to be set.

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
