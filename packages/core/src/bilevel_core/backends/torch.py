"""The PyTorch adapter.

It differentiates by ordinary autograd, and by `torch.func` where that cannot go: forward, and
inside a transform such as `vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

import torch

from bilevel_core.abstract import OuterOptimizer, Tree
from bilevel_core.backends import loops
from bilevel_core.tree import leaves, map_leaves, rebuild

__all__ = ["TorchBackend"]


def _in_transform() -> bool:
    """Say whether a `torch.func` transform is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _tracked(tree: Tree) -> Tree:
    """Return the same numbers as leaves of a new graph."""
    return map_leaves(lambda leaf: leaf.detach().requires_grad_(), tree)


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
    if not pairs:
        return [None] * len(inputs)
    return list(
        torch.autograd.grad(
            [y for y, _ in pairs],
            inputs,
            [c for _, c in pairs],
            create_graph=create_graph,
            retain_graph=create_graph or retain_graph,
            allow_unused=True,
        )
    )


def _filled(found: list[torch.Tensor | None], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    pairs = zip(found, inputs, strict=True)
    return [torch.zeros_like(x) if g is None else g for g, x in pairs]


def _nodes(value: Tree) -> set[Any]:
    """Return all nodes of the graph behind a value."""
    found: set[Any] = set()
    waiting = [leaf.grad_fn for leaf in leaves(value)]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    return found


def _saved(value: Tree) -> dict[int, int]:
    """Return the entries of every memory that the nodes behind a value have saved tensors in."""
    tensors = (tensor for node in _nodes(value) for tensor in _saved_by(node))
    storages = [(tensor.untyped_storage(), tensor.itemsize) for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() // size for storage, size in storages}


def _saved_by(node: Any) -> list[torch.Tensor]:
    """Return the tensors that a node keeps; that of a user's own function is also its context."""
    own = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    held = [*own, *getattr(node, "saved_tensors", ()), *getattr(node, "__dict__", {}).values()]
    return [tensor for tensor in held if isinstance(tensor, torch.Tensor)]


def _norm(leaf: torch.Tensor) -> float:
    """Return a leaf's norm, from numbers of the size of 1 where squares would leave the range."""
    norm, kind = float(torch.linalg.vector_norm(leaf)), torch.finfo(leaf.dtype)
    if loops.squares_fit(norm, kind.tiny, kind.eps) or leaf.numel() == 0:
        return norm
    largest = float(leaf.abs().max())
    if not 0 < largest < math.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(leaf / largest))


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


@final
@dataclass(frozen=True)
class TorchBackend:
    """`Backend` for `torch.Tensor`s on any device."""

    name: str = "torch"

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

    def signature(self, leaf: torch.Tensor) -> tuple[tuple[int, ...], str]:
        """Return (shape, dtype)."""
        return tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")

    def is_floating(self, leaf: torch.Tensor) -> bool:
        """Say whether a tensor is of a real floating-point type."""
        return leaf.is_floating_point()

    def epsilon(self, tree: Tree) -> float:
        """Return the largest machine epsilon among the tensors."""
        return max(torch.finfo(leaf.dtype).eps for leaf in leaves(tree))

    def norm(self, tree: Tree) -> float:
        """Return the norm of the leaves' norms, so that no square overflows or vanishes."""
        return math.hypot(*(_norm(leaf.detach()) for leaf in leaves(tree)))

    def is_concrete(self, tree: Tree) -> bool:
        """Say whether no leaf belongs to a transform such as `torch.func.vmap`."""
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        return not any(wrapped(leaf) for leaf in leaves(tree))

    def ones_like(self, leaf: torch.Tensor) -> torch.Tensor:
        """Return ones."""
        return torch.ones_like(leaf)

    def detach(self, tree: Tree) -> Tree:
        """Return tensors without a graph."""
        return map_leaves(lambda leaf: leaf.detach(), tree)

    def values_only(self) -> AbstractContextManager[object]:
        """Return `torch.no_grad()`."""
        return torch.no_grad()

    def fold(
        self, body: Callable[[Tree, Tree, int], Tree], carry: Tree, fixed: Tree, times: range
    ) -> Tree:
        """Loop step by step."""
        return loops.fold(body, carry, fixed, times)

    def record(
        self, body: Callable[[Tree, Tree, int], Tree], carry: Tree, fixed: Tree, times: range
    ) -> tuple[list[Tree], Tree]:
        """Loop step by step; the history is a list."""
        return loops.record(body, carry, fixed, times)

    def recall(self, history: list[Tree], index: int) -> Tree:
        """Return an element of the list."""
        return history[index]

    def gradient(self, function: Callable[[Tree], torch.Tensor]) -> Callable[[Tree], Tree]:
        """Return a gradient that keeps a graph of its own where grad mode is on."""

        def differentiated(tree: Tree) -> Tree:
            if _in_transform():
                return torch.func.grad(function)(tree)
            keep = torch.is_grad_enabled()
            with torch.enable_grad():
                inputs = map_leaves(_alias if keep else _tracked, tree)
                value, flat = function(inputs), leaves(inputs)
                found = _products([value], flat, [torch.ones_like(value)], create_graph=keep)
            return rebuild(tree, _filled(found, flat))

        return differentiated

    def reached(self, function: Callable[[Tree], Tree], tree: Tree) -> list[bool]:
        """Look for a path in the graph."""
        inputs = _tracked(tree)
        with torch.enable_grad():
            outputs = leaves(function(inputs))
        found = _products(outputs, leaves(inputs), [torch.ones_like(y) for y in outputs])
        return [g is not None for g in found]

    def vjp(
        self, function: Callable[..., Tree], *primals: Tree
    ) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
        """Return the value with its graph, and the products by `torch.autograd.grad`."""
        if _in_transform():
            value, pull = torch.func.vjp(function, *primals)[:2]
            return value, pull
        inputs = tuple(_tracked(primal) for primal in primals)
        flat = leaves(inputs)
        with torch.enable_grad():
            value = function(*inputs)

        def pull_back(cotangent: Tree) -> tuple[Tree, ...]:
            # By key and not by order: a dict of the user's may be ordered otherwise.
            pairs = leaves(map_leaves(lambda y, c: _Pair(y, c), value, cotangent))
            outputs, cotangents = [p.output for p in pairs], [p.cotangent for p in pairs]
            found = _products(outputs, flat, cotangents, retain_graph=True)
            products: tuple[Tree, ...] = rebuild(inputs, _filled(found, flat))
            return products

        return value, pull_back

    def graph_entries(self, value: Tree, besides: Tree) -> int:
        """Add up the tensors that the graph's nodes have saved, each memory once."""
        held, counted = _saved(value), _saved(besides)
        return sum(entries for memory, entries in held.items() if memory not in counted)

    def jvps(
        self, function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        """Return the value and the batched products of `torch.func.jvp` under `vmap`."""

        def along(*tangent: Tree) -> tuple[Tree, Tree]:
            pair = torch.func.jvp(function, primals, tangent)
            return pair[0], pair[1]

        if _in_transform():
            # A vmap within a vmap cannot leave out an output's axis: the first row will do.
            values, derivatives = torch.func.vmap(along)(*tangents)
            return map_leaves(lambda rows: rows[0], values), derivatives
        batched = torch.func.vmap(along, out_dims=(None, 0))  # type: ignore[arg-type]
        value, derivatives = batched(*tangents)
        return value, derivatives

    def unit_tangents(self, tree: Tree, first: int, count: int) -> Tree:
        """Return `count` rows of the identity, split and shaped like the tree's leaves."""
        tangents = []
        for leaf in leaves(tree):
            rows = torch.zeros(count, leaf.numel(), dtype=leaf.dtype, device=leaf.device)
            hot = range(max(first, 0), min(first + count, leaf.numel()))
            for column in hot:
                rows[column - first, column] = 1
            tangents.append(rows.view(count, *leaf.shape))
            first -= leaf.numel()
        return rebuild(tree, tangents)

    def from_entries(self, parts: list[torch.Tensor], like: Tree) -> Tree:
        """Return the entries with the shapes and types of the tree's leaves."""
        sizes = [leaf.numel() for leaf in leaves(like)]
        pieces = torch.split(torch.cat(parts), sizes)
        shaped = [p.view_as(x).to(x.dtype) for p, x in zip(pieces, leaves(like), strict=True)]
        return rebuild(like, shaped)

    def size(self, tree: Tree) -> int:
        """Return the number of entries."""
        return sum(leaf.numel() for leaf in leaves(tree))

    def dot(self, x: Tree, y: Tree) -> torch.Tensor:
        """Return ⟨x, y⟩."""
        products = leaves(map_leaves(lambda a, b: torch.sum(a * b), x, y))
        return torch.stack(products).sum()

    def solve(self, matrix: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the solution by LU decomposition."""
        solution, info = torch.linalg.solve_ex(matrix, b)
        return torch.where(info == 0, solution, torch.nan)

    def outer_optimizer(self, factory: Callable[..., Any], lam: Tree) -> OuterOptimizer:
        """Make `factory(list of tensors)`, such as `partial(torch.optim.Adam, lr=1e-2)`."""
        return TorchOptimizer(factory, lam)
