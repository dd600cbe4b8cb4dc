"""Forward mode: tangents carried along with the state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, final

from bilevel_core.arrays import distance, from_entries, size, unit_tangents
from bilevel_core.divergence import diagnose, repeated
from bilevel_core.flow import Ends, Flow, Instance, loop_ends, run_ends
from bilevel_core.results import Pulled, Result, Solution
from bilevel_core.tree import leaves, map_leaves
from bilevel_core.types import Array, Tree

__all__ = ["Carry", "Forward"]


@final
@dataclass(frozen=True, kw_only=True)
class Forward:
    """Z_t = A_t Z_{t-1} + B_t,  (∂w_T/∂λ)ᵀ c = Z_Tᵀ c, where Z_t is the derivative of s_t in λ.

    Attributes:
        chunk: hyperparameters whose tangents are carried at once, at least 1; None takes all, in
            the run itself. Where it takes several chunks, each is a run of its own after that.

    Cost: memory of `chunk` tangents of the state, whatever T is; time of T steps, each with `chunk`
    products, once for every chunk. It suits few hyperparameters and long runs. A start that is
    differentiated counts as so many hyperparameters.

    Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
    Frasconi, Pontil, 2017), Algorithm 2.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 hyperparameter, found {self.chunk}")

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run all T steps, with their tangents where one chunk takes all."""
        count = size((instance.lam, instance.start))
        if not keep or (self.chunk or count) < count:
            ends = run_ends(instance)
            return Solution(state=ends[1][-1], memory=ends, result=diagnose(instance, ends))
        head, tail = _carry(instance, 0, max(1, count))
        ends = [s for s, _ in head], [s for s, _ in tail]
        state, tangents = tail[-1]
        return Solution(state=state, memory=(tangents,), result=diagnose(instance, ends))

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Take the products of the tangents with the cotangent."""
        backend, params = instance.backend, instance.flow.dynamics.params
        inputs = (instance.lam, instance.start)
        _, pull_back = backend.vjp(params, solution.state)
        (alpha,) = pull_back(cotangent)
        if len(solution.memory) == 1:
            parts, result = [_products(solution.memory[0], alpha)], Result()
        else:
            parts, gap = _in_chunks(instance, solution.state, alpha, self.chunk or size(inputs))
            result = repeated(instance, solution.memory, gap)
        lam, start = backend.detach(from_entries(parts, inputs, backend))
        return Pulled(lam=lam, start=start, result=result)


def _in_chunks(
    instance: Instance, last: Tree, alpha: Tree, chunk: int
) -> tuple[list[Array], float]:
    """Run once for every chunk; returns the products, and how far a run was from the first."""
    backend, count = instance.backend, size((instance.lam, instance.start))
    parts, gap = [], 0.0
    for first in range(0, count, chunk):
        _, tail = _carry(instance, first, min(chunk, count - first))
        state, tangents = tail[-1]
        parts.append(_products(tangents, alpha))
        if not backend.compiles:
            gap = max(gap, distance(state, last, backend))
    return parts, gap


def _products(tangents: Tree, alpha: Tree) -> Array:
    """Return Zᵀ α, (rows,)."""
    products = map_leaves(lambda a, z: (z * a).reshape(len(z), -1).sum(1), alpha, tangents)
    first, *others = leaves(products)
    return sum(others, first)


def _carry(instance: Instance, first: int, count: int) -> Ends:
    """Run T steps with their derivatives along rows `first` … of the identity on (λ, start)."""
    backend, inputs = instance.backend, (instance.lam, instance.start)
    # One row at least, also where λ has no entry: then it is a tangent of nothing.
    units = unit_tangents(inputs, first, count, backend)
    start = partial(_start, instance.flow, instance.data)
    carry = backend.detach(backend.jvps(start, inputs, units))
    fixed = (instance.lam, units[0], instance.data)
    return loop_ends(backend, Carry(instance.flow), carry, fixed, instance.steps)


def _start(flow: Flow, data: Any, lam: Tree, start: Tree) -> Tree:
    return flow.start(lam, start, data)


@final
@dataclass(frozen=True)
class Carry:
    """The body of the loop: s_t and its derivatives from s_{t-1} and those."""

    flow: Flow

    def __call__(self, carry: tuple[Tree, Tree], fixed: tuple[Tree, Tree, Any], t: int) -> Tree:
        """Return (s_t, Z_t along the tangents); `fixed` is (λ, the tangents of λ, data)."""
        (state, tangents), (lam, units, data) = carry, fixed
        backend, seen = self.flow.backend, self.flow.seen(t, data)
        # What is seen is made outside of the derivative, where it may draw.
        carried = backend.jvps(
            lambda s, x: self.flow.step(s, x, seen, t), (state, lam), (tangents, units)
        )
        return backend.detach(carried)
