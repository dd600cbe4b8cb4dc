"""Forward derivatives by `torch.func`, and by two passes backward where it has none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from bilevel_core.backends.torch.graph import filled, products, tracked
from bilevel_core.tree import leaves, map_leaves, rebuild
from bilevel_core.types import Tree

__all__ = ["jvp", "jvps_backward"]


def jvp(
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


def jvps_backward(
    function: Callable[..., Tree],
    primals: tuple[Tree, ...],
    tangents: tuple[Tree, ...],
    error: Exception,
) -> tuple[Tree, Tree]:
    """Return what `jvps` does where an operation has no forward derivative, or raise its error.

    Jᵀu is linear in u, and so J v is the derivative of ⟨Jᵀu, v⟩ in u: two passes backward.
    """
    inputs = tracked(primals)
    try:
        with torch.enable_grad():
            value = function(*inputs)
            outputs = [y for y in leaves(value) if y.requires_grad]
            given = [torch.zeros_like(y).requires_grad_() for y in outputs]
            back = products(outputs, leaves(inputs), given, create_graph=True)
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
    return filled(found, given)
