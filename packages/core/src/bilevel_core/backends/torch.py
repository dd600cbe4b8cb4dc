"""The PyTorch adapter.

It differentiates by ordinary autograd, and by `torch.func` where that cannot go: forward, and
inside a transform such as `vmap`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch

from bilevel_core.abstract import OuterOptimizer
from bilevel_core.backends.messages import ONLY_ONCE
from bilevel_core.tree import leaves, map_leaves, rebuild
from bilevel_core.types import Tree

__all__ = ["TorchBackend"]


LEAF = torch.zeros((), device="cpu", requires_grad=True)


def _in_transform() -> bool:
    """Say whether a `torch.func` transform is running: there no tensor may be made a leaf."""
    try:
        LEAF.requires_grad_()
    except RuntimeError:
        return True
    return False


def _tracked_leaf(leaf: torch.Tensor) -> torch.Tensor:
    """Return the same numbers as a leaf of a new graph; whole numbers as they are."""
    return leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf


def _tracked(tree: Tree) -> Tree:
    """Return the same numbers as leaves of a new graph."""
    return map_leaves(_tracked_leaf, tree)


def _alias(leaf: torch.Tensor) -> torch.Tensor:
    """Return the same numbers as a node of its own, connected with the graph the tensor has.

    Leaves of a tree that are one tensor, or follow from each other, would otherwise get each
    other's derivative as well.
    """
    return leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_()


@dataclass(frozen=True)
class _Pair:
    output: torch.Tensor
    cotangent: torch.Tensor


def _products(
    outputs: list[torch.Tensor],
    inputs: list[torch.Tensor],
    cotangents: list[torch.Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool = False,
) -> list[torch.Tensor | None]:
    """Return the products with the transposed Jacobian; None where nothing depends on an input."""
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    tracked = [x for x in inputs if x.requires_grad]
    if not pairs or not tracked:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            tracked,
            [c for _, c in pairs],
            create_graph=create_graph,
            retain_graph=create_graph or retain_graph,
            allow_unused=True,
        )
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def _filled(found: Sequence[torch.Tensor | None], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    pairs = zip(found, inputs, strict=True)
    return [torch.zeros_like(x) if g is None else g for g, x in pairs]


@final
class TorchOptimizer:
    """A `torch.optim` optimiser over the leaves of λ, of any kind that steps along a gradient."""

    def __init__(
        self, factory: Callable[[list[torch.Tensor]], torch.optim.Optimizer], lam: Tree
    ) -> None:
        self._params = map_leaves(lambda leaf: leaf.detach().clone().requires_grad_(), lam)
        if not callable(factory):
            raise TypeError(
                f"optimizer is a {type(factory).__name__}: give what makes it from a list of "
                "tensors, such as partial(torch.optim.Adam, lr=1e-2), because λ is not yet there"
            )
        self._optimizer = factory(leaves(self._params))
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise TypeError(
                "optimizer must make a torch.optim.Optimizer from a list of tensors, found "
                f"{type(self._optimizer).__name__}: give partial(torch.optim.Adam, lr=1e-2)"
            )
        if isinstance(self._optimizer, torch.optim.LBFGS):
            raise TypeError(
                "LBFGS evaluates its objective several times within a step, and here each step has "
                "one hypergradient: give one that takes it, such as partial(torch.optim.Adam, "
                "lr=1e-2)"
            )

    def update(self, grad: Tree, lam: Tree) -> Tree:
        """Take one optimiser step from `lam` along `grad`; returns new arrays."""

        def place(param: torch.Tensor, g: torch.Tensor, at: torch.Tensor) -> None:
            param.grad = g
            param.copy_(at)

        with torch.no_grad():
            map_leaves(place, self._params, grad, lam)
        self._optimizer.step()
        return map_leaves(lambda param: param.detach().clone(), self._params)


class _Solve(torch.autograd.Function):
    """A run as a node of the graph, with the engine's way back as its derivative."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = rebuild(call.inputs, [x.detach() for x in flat])
        value, memory = call.run(*inputs, call.data, any(ctx.needs_input_grad))
        call.value, ctx.call, ctx.memory = _places(value), call, _places(memory)
        ctx.autocast = _autocast(flat[0].device.type)
        # All in autograd's keeping: freed after the way back, and guarded against writing.
        ctx.save_for_backward(*flat, *leaves(memory))
        return tuple(leaf.clone() for leaf in leaves(value))

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call, saved = ctx.call, ctx.saved_tensors
        flat = saved[: len(leaves(call.inputs))]
        inputs = rebuild(call.inputs, [x.detach() for x in flat])
        memory = rebuild(ctx.memory, list(saved[len(flat) :]))
        with torch.no_grad(), ctx.autocast():
            found = call.pull(*inputs, call.data, memory, rebuild(call.value, list(cotangents)))
        # By key and not by order: a dict of the user's may be ordered otherwise.
        products = tuple(leaves(map_leaves(lambda _, g: g, call.inputs, found)))
        if torch.is_grad_enabled():
            products = _Once.apply(  # type: ignore[no-untyped-call]
                len(products), *products, *flat, *cotangents
            )
        return (None, *products)


class _Once(torch.autograd.Function):
    """Products with a Jacobian, which cannot be differentiated once more."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        del ctx
        return tuple(x.detach().clone() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> None:
        del ctx, cotangents
        raise RuntimeError(ONLY_ONCE)


@dataclass
class _Call:
    """What `_Solve` is given beside tensors, and the shape of what it returns."""

    run: Callable[..., tuple[Tree, Tree]]
    pull: Callable[..., tuple[Tree, Tree]]
    data: Any
    inputs: tuple[Tree, Tree]
    value: Tree = None


def _places(tree: Tree) -> Tree:
    """Return a tree of the same shape that keeps no tensor."""
    return map_leaves(lambda _: None, tree)


def _autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Return what enters the present autocast state again: steps are run again on the way back."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    cached = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cached)


def _jvp(
    function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
) -> tuple[Tree, Tree]:
    """Return function(*primals) and its derivative; whole numbers have none, and are carried."""
    floats = [leaf for leaf in leaves(primals) if leaf.is_floating_point()]

    def of_floats(*given: torch.Tensor) -> tuple[list[torch.Tensor], Tree]:
        rest = iter(given)
        merged = [next(rest) if x.is_floating_point() else x for x in leaves(primals)]
        value = function(*rebuild(primals, merged))
        return [y for y in leaves(value) if y.is_floating_point()], value

    along = [
        d for x, d in zip(leaves(primals), leaves(tangents), strict=True) if x.is_floating_point()
    ]
    triple: Any = torch.func.jvp(of_floats, tuple(floats), tuple(along), has_aux=True)
    _, found, value = triple
    rest = iter(found)
    flat = [next(rest) if y.is_floating_point() else torch.zeros_like(y) for y in leaves(value)]
    return value, rebuild(value, flat)


def _jvps_backward(
    function: Callable[..., Tree],
    primals: tuple[Tree, ...],
    tangents: tuple[Tree, ...],
    error: Exception,
) -> tuple[Tree, Tree]:
    """Return what `jvps` does where an operation has no forward derivative, or raise its error.

    Jᵀu is linear in u, and so J v is the derivative of ⟨Jᵀu, v⟩ in u: two passes backward.
    """
    inputs = _tracked(primals)
    try:
        with torch.enable_grad():
            value = function(*inputs)
            outputs = [y for y in leaves(value) if y.requires_grad]
            given = [torch.zeros_like(y).requires_grad_() for y in outputs]
            back = _products(outputs, leaves(inputs), given, create_graph=True)
        rows = [
            _along(back, given, [d[row] for d in leaves(tangents)])
            for row in range(len(leaves(tangents)[0]))
        ]
    except (RuntimeError, NotImplementedError):
        raise error from None
    warnings.warn(
        "an operation has no forward derivative in torch, so each product of Forward takes two "
        f"passes backward, which is slower: {str(error).splitlines()[0][:80]}",
        RuntimeWarning,
        stacklevel=2,
    )
    found = iter([torch.stack(column) for column in zip(*rows, strict=True)])
    count = len(rows)
    flat = [
        next(found) if y.requires_grad else y.new_zeros((count, *y.shape)) for y in leaves(value)
    ]
    return map_leaves(lambda y: y.detach(), value), rebuild(value, flat)


def _along(
    back: list[torch.Tensor | None], given: list[torch.Tensor], tangent: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the derivative of ⟨Jᵀu, v⟩ in u."""
    with torch.enable_grad():
        pairs = [
            (g, d) for g, d in zip(back, tangent, strict=True) if g is not None and g.requires_grad
        ]
        if not pairs:
            return [torch.zeros_like(u) for u in given]
        total = torch.stack([(g * d).sum() for g, d in pairs]).sum()
    found = torch.autograd.grad(total, given, retain_graph=True, allow_unused=True)
    return _filled(found, given)


@final
@dataclass(frozen=True)
class TorchBackend:
    """`Backend` for `torch.Tensor`s on any device."""

    @property
    def namespace(self) -> Any:
        """The module `torch`."""
        return torch

    @property
    def compiles(self) -> bool:
        """Say whether a transform such as `torch.func.vmap` is running."""
        return _in_transform()

    def owns(self, leaf: object) -> bool:
        """Say whether a leaf is a tensor."""
        return isinstance(leaf, torch.Tensor)

    def is_concrete(self, tree: Tree) -> bool:
        """Say whether no transform such as `torch.func.vmap` is running."""
        del tree
        return not _in_transform()

    def detach(self, tree: Tree) -> Tree:
        """Return tensors without a graph."""
        return map_leaves(lambda leaf: leaf.detach(), tree)

    def values_only(self) -> AbstractContextManager[object]:
        """Return `torch.no_grad()`."""
        return torch.no_grad()

    def loop(
        self,
        body: Callable[[Tree, Tree, int], Tree],
        carry: Tree,
        fixed: Tree,
        times: range,
        *,
        keep: bool = False,
    ) -> tuple[Any, Tree]:
        """Loop step by step; the history is a list."""
        history = []
        for t in times:
            if keep:
                history.append(carry)
            carry = body(carry, fixed, t)
        return history, carry

    def gradient(
        self, function: Callable[[Tree], torch.Tensor]
    ) -> Callable[[Tree], tuple[torch.Tensor, Tree]]:
        """Return value and gradient, with a graph of their own where grad mode is on."""

        def differentiated(tree: Tree) -> tuple[torch.Tensor, Tree]:
            if _in_transform():
                grad, value = torch.func.grad_and_value(function)(tree)
                return value, grad
            keep = torch.is_grad_enabled()
            inputs = map_leaves(_alias if keep else _tracked_leaf, tree)
            with nullcontext() if keep else torch.enable_grad():
                value = function(inputs)
            flat, found = leaves(inputs), None
            if value.requires_grad:
                found = torch.autograd.grad(value, flat, create_graph=keep, allow_unused=True)
            slope = rebuild(tree, _filled(found or [None] * len(flat), flat))
            return value if keep else value.detach(), slope

        return differentiated

    def reached(self, function: Callable[[Tree], Tree], tree: Tree) -> list[bool]:
        """Look for a path in the graph."""
        inputs = _tracked(tree)
        with torch.enable_grad():
            outputs = leaves(function(inputs))
        found = _products(outputs, leaves(inputs), [torch.ones_like(y) for y in outputs])
        return [g is not None for g in found]

    def vjp(
        self, function: Callable[..., Tree], *primals: Tree, fixed: tuple[Any, ...] = ()
    ) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
        """Return the value with its graph, and the products by `torch.autograd.grad`."""
        if _in_transform():
            value, pull = torch.func.vjp(lambda *x: function(*x, *fixed), *primals)[:2]
            return value, pull
        inputs = tuple(_tracked(primal) for primal in primals)
        flat = leaves(inputs)
        with torch.enable_grad():
            value = function(*inputs, *fixed)

        def pull_back(cotangent: Tree) -> tuple[Tree, ...]:
            # By key and not by order: a dict of the user's may be ordered otherwise.
            pairs = leaves(map_leaves(lambda y, c: _Pair(y, c), value, cotangent))
            outputs, cotangents = [p.output for p in pairs], [p.cotangent for p in pairs]
            found = _products(outputs, flat, cotangents, retain_graph=True)
            products: tuple[Tree, ...] = rebuild(inputs, _filled(found, flat))
            return products

        return value, pull_back

    def jvps(
        self, function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        """Return the value and the batched products of `torch.func.jvp` under `vmap`."""

        def along(*tangent: Tree) -> tuple[Tree, Tree]:
            return _jvp(function, primals, tangent)

        if _in_transform():
            # A vmap within a vmap cannot leave out an output's axis: the first row will do.
            values, derivatives = torch.func.vmap(along)(*tangents)
            return map_leaves(lambda rows: rows[0], values), derivatives
        batched = torch.func.vmap(along, out_dims=(None, 0))  # type: ignore[arg-type]
        try:
            value, derivatives = batched(*tangents)
        except (RuntimeError, NotImplementedError) as error:
            return _jvps_backward(function, primals, tangents, error)
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
        """Return the value as a node of autograd's graph."""
        if _in_transform():
            raise RuntimeError(
                "within a transform of torch.func only Unrolled can be differentiated: take "
                "engine=Unrolled(), or ordinary autograd over a problem with many tasks"
            )
        if not torch.is_grad_enabled():
            return run(*self.detach((lam, start)), data, False)[0]
        if any(leaf.requires_grad for leaf in leaves((lam, start))):
            _refuse_captured(probe(*self.detach((lam, start)), data))
        call = _Call(run=run, pull=pull, data=data, inputs=_places((lam, start)))
        outputs = _Solve.apply(call, *leaves((lam, start)))  # type: ignore[no-untyped-call]
        return rebuild(call.value, list(outputs))

    def mapped(self, function: Callable[..., Tree]) -> Callable[..., Tree]:
        """Return `torch.func.vmap` of the function."""
        return torch.func.vmap(function, randomness="different")

    def outer_optimizer(self, factory: Callable[..., Any], lam: Tree) -> OuterOptimizer:
        """Make `factory(list of tensors)`, such as `partial(torch.optim.Adam, lr=1e-2)`."""
        return TorchOptimizer(factory, lam)


def _refuse_captured(values: Tree) -> None:
    """Refuse values that are still part of a graph, although all they were given is not."""
    if any(leaf.requires_grad for leaf in leaves(values)):
        raise ValueError(
            "the inner objective, init or the dynamics depend on a tensor that requires a gradient "
            "and stands neither in λ nor in the start, so its derivative would be lost: put it "
            "into λ, detach it, or use Unrolled"
        )
