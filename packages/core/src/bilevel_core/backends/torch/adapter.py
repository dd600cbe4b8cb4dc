"""The PyTorch adapter.

It differentiates by ordinary autograd, and by `torch.func` where that cannot go: forward, and
inside a transform such as `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

import torch

from bilevel_core.abstract import OuterOptimizer
from bilevel_core.backends.torch.forward import jvp, jvps_backward
from bilevel_core.backends.torch.graph import (
    alias,
    filled,
    in_transform,
    own,
    products,
    tracked,
    tracked_leaf,
)
from bilevel_core.backends.torch.node import refuse_captured, solve_node
from bilevel_core.backends.torch.optimizer import TorchOptimizer
from bilevel_core.tree import leaves, map_leaves, rebuild
from bilevel_core.types import Tree

__all__ = ["TorchBackend"]


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
        return in_transform()

    def owns(self, leaf: object) -> bool:
        """Say whether a leaf is a tensor."""
        return isinstance(leaf, torch.Tensor)

    def is_concrete(self, tree: Tree) -> bool:
        """Say whether no transform such as `torch.func.vmap` is running."""
        del tree
        return not in_transform()

    def detach(self, tree: Tree) -> Tree:
        """Return tensors without a graph."""
        within = in_transform()  # whose tensors do not say whether they have one
        return map_leaves(
            lambda leaf: leaf.detach() if within or leaf.requires_grad else leaf, tree
        )

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
        self, function: Callable[[Tree], torch.Tensor], *, apart: bool = False
    ) -> Callable[[Tree], tuple[torch.Tensor, Tree]]:
        """Return value and gradient, with a graph of their own where grad mode is on."""

        def differentiated(tree: Tree) -> tuple[torch.Tensor, Tree]:
            if in_transform():
                grad, value = torch.func.grad_and_value(function)(tree)
                return value, grad
            keep = torch.is_grad_enabled()
            separate = own if apart else alias
            inputs = map_leaves(separate if keep else tracked_leaf, tree)
            if keep:
                value = function(inputs)
            else:
                with torch.enable_grad():
                    value = function(inputs)
            flat = leaves(inputs)
            found: Any = [None] * len(flat)
            if value.requires_grad:
                found = torch.autograd.grad(value, flat, create_graph=keep, allow_unused=True)
            if any(g is None for g in found):
                found = filled(found, flat)
            return value if keep else value.detach(), rebuild(tree, found)

        return differentiated

    def depends_on(self, function: Callable[[Tree], Tree], tree: Tree) -> list[bool]:
        """Look for a path in the graph."""
        inputs = tracked(tree)
        with torch.enable_grad():
            outputs = leaves(function(inputs))
        found = products(outputs, leaves(inputs), [torch.ones_like(y) for y in outputs])
        return [g is not None for g in found]

    def vjp(
        self, function: Callable[..., Tree], *primals: Tree, fixed: tuple[Any, ...] = ()
    ) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
        """Return the value with its graph, and the products by `torch.autograd.grad`."""
        if in_transform():
            value, pull = torch.func.vjp(lambda *x: function(*x, *fixed), *primals)[:2]
            return value, pull
        inputs = tuple(tracked(primal) for primal in primals)
        flat = leaves(inputs)
        with torch.enable_grad():
            value = function(*inputs, *fixed)

        def pull_back(cotangent: Tree) -> tuple[Tree, ...]:
            # By key and not by order: a dict of the user's may be ordered otherwise.
            cotangents = leaves(map_leaves(lambda _, c: c, value, cotangent))
            found = products(leaves(value), flat, cotangents, retain_graph=True)
            through: tuple[Tree, ...] = rebuild(inputs, filled(found, flat))
            return through

        return value, pull_back

    def jvps(
        self, function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        """Return the value and the batched products of `torch.func.jvp` under `vmap`."""

        def along(*tangent: Tree) -> tuple[Tree, Tree]:
            return jvp(function, primals, tangent)

        if in_transform():
            # A vmap within a vmap cannot leave out an output's axis: the first row will do.
            values, derivatives = torch.func.vmap(along)(*tangents)
            return map_leaves(lambda rows: rows[0], values), derivatives
        batched = torch.func.vmap(along, out_dims=(None, 0))  # type: ignore[arg-type]
        try:
            value, derivatives = batched(*tangents)
        except (RuntimeError, NotImplementedError) as error:
            return jvps_backward(function, primals, tangents, error)
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
        asked = leaves((lam, start))
        if not torch.is_grad_enabled():
            return run(*self.detach((lam, start)), data, False)[0]
        keep = in_transform() or any(leaf.requires_grad for leaf in asked)
        if keep:
            refuse_captured(probe(*self.detach((lam, start)), data))
        constant = map_leaves(lambda x: x.detach() if self.owns(x) else x, data)
        return solve_node(run, pull, (lam, start, constant), keep=keep)

    def mapped(self, function: Callable[..., Tree]) -> Callable[..., Tree]:
        """Return `torch.func.vmap` of the function."""
        return torch.func.vmap(function, randomness="different")

    def outer_optimizer(self, factory: Callable[..., Any], lam: Tree) -> OuterOptimizer:
        """Make `factory(list of tensors)`, such as `partial(torch.optim.Adam, lr=1e-2)`."""
        return TorchOptimizer(factory, lam)
