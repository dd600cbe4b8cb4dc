"""Trees of tensors as leaves of a graph, and products by ordinary autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree

__all__ = ["alias", "filled", "in_transform", "own", "products", "tracked", "tracked_leaf"]

LEAF = torch.zeros((), device="cpu", requires_grad=True)


def in_transform() -> bool:
    """Say whether a `torch.func` transform is running: there no tensor may be made a leaf."""
    try:
        LEAF.requires_grad_()
    except RuntimeError:
        return True
    return False


def tracked_leaf(leaf: torch.Tensor) -> torch.Tensor:
    """Return the same numbers as a leaf of a new graph; whole numbers as they are."""
    return leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf


def tracked(tree: Tree) -> Tree:
    """Return the same numbers as leaves of a new graph."""
    return map_leaves(tracked_leaf, tree)


def alias(leaf: torch.Tensor) -> torch.Tensor:
    """Return the same numbers as a node of its own, connected with the graph the tensor has.

    Leaves of a tree that are one tensor, or follow from each other, would otherwise get each
    other's derivative as well.
    """
    return leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_()


def own(leaf: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself where it is a node already."""
    return leaf if leaf.requires_grad else leaf.detach().requires_grad_()


def products(
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


def filled(found: Sequence[torch.Tensor | None], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return products with zeros for None."""
    pairs = zip(found, inputs, strict=True)
    return [torch.zeros_like(x) if g is None else g for g, x in pairs]
