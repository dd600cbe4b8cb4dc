"""The JAX adapter.

Loops are compiled once a body: `jax.jit` with a running `t` outside a trace, and `lax` loops inside
one. A body whose functions look at `t` or at numbers, which tracing cannot follow, is run as an
ordinary loop instead, with the same result and a warning: it is slower by orders of magnitude.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, is_dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, Literal

from bilevel_core.abstract import OuterOptimizer
from bilevel_core.backends.messages import ONLY_ONCE
from bilevel_core.results import Hypergradient
from bilevel_core.tree import leaves, map_leaves
from bilevel_core.types import Tree

__all__ = ["JaxBackend"]

Body = Callable[[Tree, Tree, Any], Tree]

# So that a jitted function can return what `hypergradient` returns.
jax.tree_util.register_dataclass(
    Hypergradient, data_fields=["value", "grad", "state", "guess"], meta_fields=["result"]
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
        return body(carry, fixed, start + i * stride)

    last: Tree = lax.fori_loop(0, count, step, carry)
    return last


def _scan(
    body: Body, carry: Tree, fixed: Tree, start: int, stride: int, count: int
) -> tuple[Tree, Tree]:
    def step(carry: Tree, i: Any) -> tuple[Tree, Tree]:
        return body(carry, fixed, start + i * stride), carry

    last, history = lax.scan(step, carry, jnp.arange(count))
    return history, last


# The number of rounds is an argument of the one, so that it compiles once for every T, and a
# constant of the other, whose result has a row a step.
_compiled_call = jax.jit(_call, static_argnums=0)
_compiled_loop = jax.jit(_loop, static_argnums=0)
_compiled_scan = jax.jit(_scan, static_argnums=(0, 5))


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


@jax.tree_util.register_pytree_node_class
@final
class _Rows:
    """The carries of a loop, as a tree whose leaves have a leading axis over its steps."""

    def __init__(self, stacked: Tree) -> None:
        self._stacked = stacked

    def __getitem__(self, index: Any) -> Tree:
        """Return the carry of one step."""
        return map_leaves(lambda rows: rows[index], self._stacked)

    def tree_flatten(self) -> tuple[tuple[Tree], None]:
        """Return what JAX sees."""
        return (self._stacked,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Tree]) -> _Rows:
        """Return it from what JAX saw."""
        del aux
        return cls(*children)


@jax.custom_jvp
def _once(tree: Tree) -> Tree:
    """Return what a way back begins with, and refuse to differentiate it."""
    return tree


@_once.defjvp
def _refuse_twice(primals: tuple[Tree], tangents: tuple[Tree]) -> tuple[Tree, Tree]:
    del primals, tangents
    raise TypeError(ONLY_ONCE)


def _whole(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jnp.inexact)


def _cotangent(value: Tree, cotangent: Tree) -> Tree:
    """Return a cotangent as JAX wants it: that of whole numbers has a type of its own."""
    return map_leaves(
        lambda y, c: np.zeros(y.shape, jax.dtypes.float0) if _whole(y) else c, value, cotangent
    )


def _filled(products: Tree, primals: Tree) -> Tree:
    """Return products with zeros for whole numbers."""
    return map_leaves(lambda x, g: jnp.zeros_like(x) if _whole(x) else g, primals, products)


def _made(value: jax.Array, cotangent: Any) -> jax.Array:
    """Return a cotangent as an array, also where JAX knows that it is zero."""
    symbolic = isinstance(cotangent, jax.custom_derivatives.SymbolicZero)
    return jnp.zeros_like(value) if symbolic else cotangent


def _used(jaxpr: Jaxpr, asked: list[bool]) -> list[bool]:
    """Say for each input of a jaxpr whether one of the outputs that are asked for needs it."""
    needed = {v for v, ask in zip(jaxpr.outvars, asked, strict=True) if ask and _is_variable(v)}
    for equation in reversed(jaxpr.eqns):
        outputs = [v in needed for v in equation.outvars]
        if not any(outputs):
            continue
        inputs = [True] * len(equation.invars)
        if equation.primitive.name == "jit":  # a function within, with inputs and outputs as here
            inputs = _used(equation.params["jaxpr"].jaxpr, outputs)
        needed |= {
            v for v, use in zip(equation.invars, inputs, strict=True) if use and _is_variable(v)
        }
    return [v in needed for v in jaxpr.invars]


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, Literal)


def _by_steps(
    body: Body, carry: Tree, fixed: Tree, times: range, *, keep: bool
) -> tuple[Any, Tree]:
    history = []
    for t in times:
        if keep:
            history.append(carry)
        carry = body(carry, fixed, t)
    if not keep:
        return (), carry
    return _Rows(map_leaves(lambda *rows: jnp.stack(rows), *history)), carry


def _say_slow(error: Exception) -> None:
    """Warn that a function cannot be traced; Python shows the same warning once."""
    first = (str(error).splitlines() or [""])[0][:120]
    warnings.warn(
        "batches, dynamics or objectives look at t or at numbers, which JAX cannot trace: the "
        "steps run one by one, slower by orders of magnitude; compute with t instead (jnp.where, "
        f"indexing of arrays, jax.random.fold_in). It said {type(error).__name__}: {first}",
        RuntimeWarning,
        stacklevel=2,
    )


@final
@dataclass(frozen=True)
class JaxBackend:
    """`Backend` for `jax.Array`s, traced or not."""

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

    def is_concrete(self, tree: Tree) -> bool:
        """Say whether no leaf is being traced (by `jit`, `vmap`, `grad`)."""
        return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))

    def detach(self, tree: Tree) -> Tree:
        """Return arrays that stop derivatives."""
        return map_leaves(lax.stop_gradient, tree)

    def values_only(self) -> AbstractContextManager[object]:
        """Return an empty context: JAX keeps no graph."""
        return nullcontext()

    def loop(
        self, body: Body, carry: Tree, fixed: Tree, times: range, *, keep: bool = False
    ) -> tuple[Any, Tree]:
        """Loop in compiled code; the history is stacked."""
        if not times:
            return (), carry
        traced = not self.is_concrete((carry, fixed))
        if traced and len(times) == 1 and not keep:
            return (), body(carry, fixed, times.start)
        where = (_findable(body), carry, fixed, times.start, times.step, len(times))
        try:
            # Within a trace the bounds are constants: the loop can then be differentiated backward.
            if not keep:
                return (), (_loop if traced else _compiled_loop)(*where)
            stacked, last = (_scan if traced else _compiled_scan)(*where)
        except UNTRACEABLE as error:
            result = _by_steps(body, carry, fixed, times, keep=keep)
            _say_slow(error)
            return result
        return _Rows(stacked), last

    def gradient(
        self, function: Callable[[Tree], jax.Array], *, apart: bool = False
    ) -> Callable[[Tree], tuple[jax.Array, Tree]]:
        """Return `jax.value_and_grad` of a scalar function, which keeps leaves apart itself."""
        del apart
        differentiated: Callable[[Tree], tuple[jax.Array, Tree]] = jax.value_and_grad(function)
        return differentiated

    def depends_on(self, function: Callable[[Tree], Tree], tree: Tree) -> list[bool]:
        """Look for a path in the function's jaxpr."""
        jaxpr = jax.make_jaxpr(function)(tree).jaxpr
        used = _used(jaxpr, [True] * len(jaxpr.outvars))
        marks = jax.tree.unflatten(jax.tree.structure(tree), used)
        return leaves(map_leaves(lambda _, mark: mark, tree, marks))  # JAX sorts a dict's keys

    def vjp(
        self, function: Callable[..., Tree], *primals: Tree, fixed: tuple[Any, ...] = ()
    ) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
        """Return `jax.vjp`, compiled where the function can be found again."""

        def plainly(*x: Tree) -> Tree:
            return function(*x, *fixed)

        def compiled(*x: Tree) -> Tree:
            return _compiled_call(_findable(function), *x, *fixed)

        value, pull_back = None, None
        if is_dataclass(function) and self.is_concrete((primals, fixed)):
            try:
                value, pull_back = jax.vjp(compiled, *primals)
            except UNTRACEABLE as error:
                _say_slow(error)
        if pull_back is None:
            value, pull_back = jax.vjp(plainly, *primals)
        return value, lambda cotangent: _filled(pull_back(_cotangent(value, cotangent)), primals)

    def jvps(
        self, function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        """Return the value and the batched products of `jax.jvp` under `vmap`."""

        def along(*tangent: Tree) -> tuple[Tree, Tree]:
            value, derivative = jax.jvp(function, primals, _cotangent(primals, tangent))
            return value, _filled(derivative, value)

        value, derivatives = jax.vmap(along, out_axes=(None, 0))(*tangents)
        return value, derivatives

    def differentiable(
        self,
        run: Callable[..., tuple[Tree, Tree]],
        pull: Callable[..., tuple[Tree, Tree]],
        probe: Callable[..., Tree],
        lam: Tree,
        start: Tree,
        data: Any,
    ) -> Tree:
        """Return the value as a function with a rule of its own."""
        del probe  # JAX looks itself for what is captured

        @jax.custom_vjp
        def solve(lam: Tree, start: Tree, data: Any) -> Tree:
            return run(lam, start, data, False)[0]

        def forward(lam: Tree, start: Tree, data: Any) -> tuple[Tree, Any]:
            if any(leaf.perturbed for leaf in jax.tree.leaves(data)):
                raise ValueError(
                    "the data are differentiated, but solve_inner is differentiated in λ and the "
                    "start alone: put into λ what is to have a derivative, or use Unrolled"
                )
            inputs = jax.tree.map(lambda leaf: leaf.value, (lam, start, data))
            value, memory = run(*inputs, True)
            return value, (inputs, value, memory)

        def backward(kept: Any, cotangent: Tree) -> tuple[Tree, Tree, None]:
            cotangent = map_leaves(_made, kept[1], cotangent)
            # At the entrance: what engines detach further in would hide a second derivative.
            (inputs, _, memory), cotangent = _once((kept, cotangent))
            through_lam, through_start = pull(*inputs, memory, cotangent)
            return (*map_leaves(lambda _, g: g, inputs[:2], (through_lam, through_start)), None)

        solve.defvjp(forward, backward, symbolic_zeros=True)
        return solve(lam, start, data)

    def mapped(self, function: Callable[..., Tree]) -> Callable[..., Tree]:
        """Return `jax.vmap` of the function."""
        batched: Callable[..., Tree] = jax.vmap(function)
        return batched

    def outer_optimizer(self, factory: Any, lam: Tree) -> OuterOptimizer:
        """Use an optax transformation, such as `optax.adam(1e-2)`."""
        return JaxOptimizer(factory, lam)
