"""The JAX adapter.

Loops are compiled once a body: `jax.jit` with a running `t` outside a trace, and `lax` loops inside
one. A body whose functions look at `t` or at numbers, which tracing cannot follow, is run as an
ordinary loop instead: slower, with the same result. The text of `t`, and of what operators make of
it, is refused too, so that such a look shows (traced_step.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters.partial_eval import dce_jaxpr

from bilevel_core.abstract import OuterOptimizer, Tree
from bilevel_core.backends import loops
from bilevel_core.backends.traced_step import watched
from bilevel_core.results import Hypergradient
from bilevel_core.tree import leaves, map_leaves, rebuild

__all__ = ["JaxBackend"]

Body = Callable[[Tree, Tree, Any], Tree]

# So that a jitted function can return what `hypergradient` returns.
jax.tree_util.register_dataclass(
    Hypergradient, data_fields=["value", "grad", "state"], meta_fields=["result"]
)

# What tracers raise, and what functions raise that are given one: a dict that it is no key of, a
# generator that it cannot seed. A mistake of the user's raises again where the loop runs in Python.
UNTRACEABLE = (TypeError, ValueError, LookupError, AttributeError)


@final
class _Once:
    """A function that cannot be hashed, found again only where it is the same object."""

    def __init__(self, function: Callable[..., Tree]) -> None:
        self._function = function

    def __call__(self, *arguments: Tree) -> Tree:
        return self._function(*arguments)


def _findable(function: Callable[..., Tree]) -> Callable[..., Tree]:
    try:
        hash(function)
    except TypeError:
        return _Once(function)
    return function


def _call(function: Callable[..., Tree], *arguments: Tree) -> Tree:
    return function(*arguments)


def _loop(body: Body, carry: Tree, fixed: Tree, start: int, stride: int, count: int) -> Tree:
    def step(i: Any, carry: Tree) -> Tree:
        return body(carry, fixed, watched(start + i * stride))

    last: Tree = lax.fori_loop(0, count, step, carry)
    return last


def _scan(
    body: Body, carry: Tree, fixed: Tree, start: int, stride: int, count: int
) -> tuple[Tree, Tree]:
    def step(carry: Tree, i: Any) -> tuple[Tree, Tree]:
        return body(carry, fixed, watched(start + i * stride)), carry

    last, history = lax.scan(step, carry, jnp.arange(count))
    return history, last


# The number of rounds is an argument of the one, so that it compiles once for every T, and a
# constant of the other, whose result has a row a step.
_compiled_call = jax.jit(_call, static_argnums=0)
_compiled_loop = jax.jit(_loop, static_argnums=0)
_compiled_scan = jax.jit(_scan, static_argnums=(0, 5))


@jax.jit
def _root_of_squares(leaf: jax.Array, unit: float) -> jax.Array:
    norm: jax.Array = jnp.linalg.norm((leaf / unit).ravel())
    return norm


def _norm(leaf: jax.Array) -> float:
    """Return a leaf's norm, from numbers of the size of 1 where squares would leave the range."""
    norm = float(_root_of_squares(leaf, 1.0))
    kind = jnp.finfo(leaf.dtype)  # type: ignore[no-untyped-call]
    if loops.squares_fit(norm, float(kind.tiny), float(kind.eps)) or leaf.size == 0:
        return norm
    largest = float(jnp.abs(leaf).max())
    if not 0 < largest < math.inf:
        return largest
    return largest * float(_root_of_squares(leaf, largest))


@final
class JaxOptimizer:
    """Any optax transformation over λ."""

    def __init__(self, transformation: Any, lam: Tree) -> None:
        if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
            raise TypeError(
                f"optimizer must be an optax transformation, found {transformation!r}: "
                "give optax.adam(1e-2)"
            )
        self._state = transformation.init(lam)
        self._update = jax.jit(transformation.update)

    def update(self, grad: Tree, lam: Tree) -> Tree:
        """Add the transformation's update for `grad` to `lam`."""
        updates, self._state = self._update(grad, self._state, lam)
        return map_leaves(lambda x, u: (x + u).astype(x.dtype), lam, updates)


@final
@dataclass(frozen=True)
class JaxBackend:
    """`Backend` for `jax.Array`s, traced or not."""

    name: str = "jax"

    @property
    def namespace(self) -> Any:
        """The module `jax.numpy`."""
        return jnp

    @property
    def compiles(self) -> bool:
        """Say yes."""
        return True

    def owns(self, leaf: object) -> bool:
        """Say whether a leaf is a JAX array."""
        return isinstance(leaf, jax.Array)

    def signature(self, leaf: jax.Array) -> tuple[tuple[int, ...], str]:
        """Return (shape, dtype)."""
        return tuple(leaf.shape), str(leaf.dtype)

    def is_floating(self, leaf: jax.Array) -> bool:
        """Say whether an array is of a real floating-point type."""
        return bool(jnp.issubdtype(leaf.dtype, jnp.floating))

    def epsilon(self, tree: Tree) -> float:
        """Return the largest machine epsilon among the arrays."""
        return max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves(tree))  # type: ignore[no-untyped-call]

    def norm(self, tree: Tree) -> float:
        """Return the norm of the leaves' norms, so that no square overflows or vanishes."""
        return math.hypot(*(_norm(leaf) for leaf in leaves(tree)))

    def is_concrete(self, tree: Tree) -> bool:
        """Say whether no leaf is being traced (by `jit`, `vmap`, `grad`)."""
        return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))

    def ones_like(self, leaf: jax.Array) -> jax.Array:
        """Return ones."""
        return jnp.ones_like(leaf)

    def detach(self, tree: Tree) -> Tree:
        """Return arrays that stop derivatives."""
        return map_leaves(lax.stop_gradient, tree)

    def values_only(self) -> AbstractContextManager[object]:
        """Return an empty context: JAX keeps no graph."""
        return nullcontext()

    def fold(self, body: Body, carry: Tree, fixed: Tree, times: range) -> Tree:
        """Loop in compiled code."""
        if not times:
            return carry
        # Within a trace the bounds are constants: the loop can then be differentiated backward.
        loop = _compiled_loop if self.is_concrete((carry, fixed)) else _loop
        try:
            return loop(_findable(body), carry, fixed, times.start, times.step, len(times))
        except UNTRACEABLE:
            return loops.fold(body, carry, fixed, times)

    def record(self, body: Body, carry: Tree, fixed: Tree, times: range) -> tuple[Tree, Tree]:
        """Loop in compiled code; the history's leaves have a leading axis over steps."""
        if not times:
            return (), carry
        scan = _compiled_scan if self.is_concrete((carry, fixed)) else _scan
        try:
            return scan(_findable(body), carry, fixed, times.start, times.step, len(times))
        except UNTRACEABLE:
            states, last = loops.record(body, carry, fixed, times)
            return map_leaves(lambda *rows: jnp.stack(rows), *states), last

    def recall(self, history: Tree, index: Any) -> Tree:
        """Return a row of every leaf."""
        return map_leaves(lambda rows: rows[index], history)

    def gradient(self, function: Callable[[Tree], jax.Array]) -> Callable[[Tree], Tree]:
        """Return `jax.grad` of a scalar function."""
        gradient: Callable[[Tree], Tree] = jax.grad(function)
        return gradient

    def reached(self, function: Callable[[Tree], Tree], tree: Tree) -> list[bool]:
        """Look for a path in the function's jaxpr."""
        jaxpr = jax.make_jaxpr(function)(tree).jaxpr
        _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        marks = jax.tree.unflatten(jax.tree.structure(tree), used)
        return leaves(map_leaves(lambda _, mark: mark, tree, marks))  # JAX sorts a dict's keys

    def vjp(
        self, function: Callable[..., Tree], *primals: Tree
    ) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
        """Return `jax.vjp`, compiled where the function can be found again."""
        if is_dataclass(function) and self.is_concrete(primals):
            try:
                value, pull_back = jax.vjp(partial(_compiled_call, _findable(function)), *primals)
            except UNTRACEABLE:
                pass
            else:
                return value, pull_back
        value, pull_back = jax.vjp(function, *primals)
        return value, pull_back

    def graph_entries(self, value: Tree, besides: Tree) -> int:
        """Return 0: what JAX keeps belongs to the way back and not to the value."""
        del value, besides
        return 0

    def jvps(
        self, function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        """Return the value and the batched products of `jax.jvp` under `vmap`."""

        def along(*tangent: Tree) -> tuple[Tree, Tree]:
            value, derivative = jax.jvp(function, primals, tangent)
            return value, derivative

        value, derivatives = jax.vmap(along, out_axes=(None, 0))(*tangents)
        return value, derivatives

    def unit_tangents(self, tree: Tree, first: int, count: int) -> Tree:
        """Return `count` rows of the identity, split and shaped like the tree's leaves."""
        tangents = []
        for leaf in leaves(tree):
            hot = jnp.arange(count)[:, None] + first == jnp.arange(leaf.size)[None, :]
            tangents.append(hot.astype(leaf.dtype).reshape(count, *leaf.shape))
            first -= leaf.size
        return rebuild(tree, tangents)

    def from_entries(self, parts: list[jax.Array], like: Tree) -> Tree:
        """Return the entries with the shapes and types of the tree's leaves."""
        flat, shaped, first = jnp.concatenate(parts), [], 0
        for leaf in leaves(like):
            shaped.append(flat[first : first + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
            first += leaf.size
        return rebuild(like, shaped)

    def size(self, tree: Tree) -> int:
        """Return the number of entries."""
        return sum(leaf.size for leaf in leaves(tree))

    def dot(self, x: Tree, y: Tree) -> jax.Array:
        """Return ⟨x, y⟩."""
        return jnp.stack(leaves(map_leaves(lambda a, b: jnp.sum(a * b), x, y))).sum()

    def solve(self, matrix: jax.Array, b: jax.Array) -> jax.Array:
        """Return the solution by LU decomposition."""
        solution: jax.Array = jnp.linalg.solve(matrix, b)
        return solution

    def outer_optimizer(self, factory: Any, lam: Tree) -> OuterOptimizer:
        """Use an optax transformation, such as `optax.adam(1e-2)`."""
        return JaxOptimizer(factory, lam)
