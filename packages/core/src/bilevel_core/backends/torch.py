"""The PyTorch adapter, on `torch.func`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from bilevel_core.abstract import OuterOptimizer, Tree
from bilevel_core.tree import leaves, map_leaves, rebuild

__all__ = ["TorchBackend"]


@final
class TorchOptimizer:
    """Any `torch.optim` optimiser over the leaves of λ."""

    def __init__(
        self, factory: Callable[[list[torch.Tensor]], torch.optim.Optimizer], lam: Tree
    ) -> None:
        self._like = lam
        self._params = [leaf.detach().clone().requires_grad_() for leaf in leaves(lam)]
        self._optimizer = factory(self._params)

    def update(self, grad: Tree) -> Tree:
        """Take one optimiser step along `grad`; returns λ as new arrays."""
        for param, g in zip(self._params, leaves(grad), strict=True):
            param.grad = g
        self._optimizer.step()
        return rebuild(self._like, [param.detach().clone() for param in self._params])


@final
@dataclass(frozen=True)
class TorchBackend:
    """`Backend` for `torch.Tensor`s on any device."""

    name: str = "torch"

    @property
    def namespace(self) -> Any:
        """The module `torch`."""
        return torch

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
        """Return the Euclidean norm over all entries."""
        return math.hypot(*(float(torch.linalg.vector_norm(leaf)) for leaf in leaves(tree)))

    def ones_like(self, leaf: torch.Tensor) -> torch.Tensor:
        """Return ones of the same shape, dtype and device."""
        return torch.ones_like(leaf)

    def detach(self, tree: Tree) -> Tree:
        """Return the same numbers outside any graph."""
        return map_leaves(torch.Tensor.detach, tree)

    def gradient(self, function: Callable[[Tree], torch.Tensor]) -> Callable[[Tree], Tree]:
        """Return `torch.func.grad` of a scalar function."""
        return torch.func.grad(function)

    def vjp(
        self, function: Callable[..., Tree], *primals: Tree
    ) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
        """Return the value and the pull-back of `torch.func.vjp`."""
        value, pull_back = torch.func.vjp(function, *primals)[:2]
        return value, pull_back

    def jvps(
        self, function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        """Return the value and the batched products of `torch.func.jvp` under `vmap`."""

        def along(*tangent: Tree) -> tuple[Tree, Tree]:
            pair = torch.func.jvp(function, primals, tangent)
            return pair[0], pair[1]

        batched = torch.func.vmap(along, out_dims=(None, 0))  # type: ignore[arg-type]
        value, derivatives = batched(*tangents)
        return value, derivatives

    def unit_tangents(self, tree: Tree, first: int, count: int) -> Tree:
        """Return `count` rows of the identity, split and shaped like the tree's leaves."""
        tangents = []
        for leaf in leaves(tree):
            rows = leaf.new_zeros(count, leaf.numel())
            hot = range(max(first, 0), min(first + count, leaf.numel()))
            for column in hot:
                rows[column - first, column] = 1
            tangents.append(rows.view(count, *leaf.shape))
            first -= leaf.numel()
        return rebuild(tree, tangents)

    def from_entries(self, parts: list[torch.Tensor], like: Tree) -> Tree:
        """Return the entries shaped like the tree's leaves."""
        sizes = [leaf.numel() for leaf in leaves(like)]
        pieces = torch.split(torch.cat(parts), sizes)
        shaped = [p.view_as(leaf) for p, leaf in zip(pieces, leaves(like), strict=True)]
        return rebuild(like, shaped)

    def size(self, tree: Tree) -> int:
        """Return the number of entries."""
        return sum(leaf.numel() for leaf in leaves(tree))

    def dot(self, x: Tree, y: Tree) -> torch.Tensor:
        """Return ⟨x, y⟩."""
        products = [torch.sum(a * b) for a, b in zip(leaves(x), leaves(y), strict=True)]
        return torch.stack(products).sum()

    def solve(self, rows: Tree, b: Tree) -> Tree:
        """Return the solution by LU decomposition."""
        matrix = torch.cat([leaf.flatten(1) for leaf in leaves(rows)], dim=1)
        right = torch.cat([leaf.flatten() for leaf in leaves(b)])
        return self.from_entries([torch.linalg.solve(matrix, right)], b)

    def outer_optimizer(self, factory: Callable[..., Any], lam: Tree) -> OuterOptimizer:
        """Make `factory(list of tensors)`, such as `partial(torch.optim.Adam, lr=1e-2)`."""
        return TorchOptimizer(factory, lam)
