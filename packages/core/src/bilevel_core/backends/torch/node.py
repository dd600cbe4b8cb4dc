"""A solve as a node of autograd's graph, by a rule that is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from bilevel_core.backends.messages import ONLY_ONCE
from bilevel_core.tree import leaves, map_leaves, rebuild
from bilevel_core.types import Tree

__all__ = ["refuse_captured", "solve_node"]


def solve_node(
    run: Callable[..., tuple[Tree, Tree]],
    pull: Callable[..., tuple[Tree, Tree]],
    inputs: tuple[Tree, Tree, Any],
    *,
    keep: bool,
) -> Tree:
    """Return the value of `run` with `pull` for its derivative (`Backend.differentiable`).

    Args:
        run: from (λ, start, data, keep) to the value and the memory.
        pull: from (λ, start, data, memory, cotangent) to the products for λ and the start.
        inputs: λ, the start, and the data, which have no derivative.
        keep: whether there will be a way back.
    """
    call = _Call(run=run, pull=pull, inputs=_places(inputs), keep=keep)
    outputs = _Solve.apply(call, *leaves(inputs))  # type: ignore[no-untyped-call]
    return rebuild(call.value, list(outputs[: len(leaves(call.value))]))


class _Solve(torch.autograd.Function):
    """A run as a node of the graph, with the engine's way back as its derivative.

    The memory is among the outputs, so that transforms of `torch.func` can take it apart.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *flat: Any) -> tuple[torch.Tensor, ...]:
        lam, start, data = rebuild(call.inputs, list(flat))
        value, memory = call.run(*map_leaves(lambda x: x.detach(), (lam, start)), data, call.keep)
        call.value, call.memory = _places(value), _places(memory)
        # The user may write into the value, and not into the memory.
        return (*(leaf.clone() for leaf in leaves(value)), *leaves(memory))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        call, *flat = inputs
        count = len(leaves(call.value))
        values, memory = output[:count], output[count:]
        ctx.kinds = [(leaf.shape, leaf.dtype, leaf.device) for leaf in values]
        ctx.call, ctx.autocast = call, _autocast(flat[0].device.type)
        ctx.others = [() if isinstance(x, torch.Tensor) else (x,) for x in flat]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*memory)
        # All in autograd's keeping: freed after the way back, and guarded against writing.
        ctx.save_for_backward(*(x for x in flat if isinstance(x, torch.Tensor)), *memory)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        call, saved = ctx.call, iter(ctx.saved_tensors)
        flat = [other[0] if other else next(saved) for other in ctx.others]
        *given_in, data = rebuild(call.inputs, flat)
        lam, start = map_leaves(lambda x: x.detach(), given_in)
        memory = rebuild(call.memory, list(saved))
        given = [
            torch.zeros(shape, dtype=dtype, device=device) if c is None else c
            for c, (shape, dtype, device) in zip(
                cotangents[: len(ctx.kinds)], ctx.kinds, strict=True
            )
        ]
        with torch.no_grad(), ctx.autocast():
            found = call.pull(lam, start, data, memory, rebuild(call.value, given))
        # By key and not by order: a dict of the user's may be ordered otherwise.
        products = tuple(leaves(map_leaves(lambda _, g: g, (lam, start), found)))
        if torch.is_grad_enabled():
            products = _Once.apply(  # type: ignore[no-untyped-call]
                len(products), *products, *leaves(given_in), *given
            )
        return (None, *products, *(None for _ in leaves(data)))


class _Once(torch.autograd.Function):
    """Products with a Jacobian, which cannot be differentiated once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.detach().clone() for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> None:
        del ctx, cotangents
        raise RuntimeError(ONLY_ONCE)


@dataclass
class _Call:
    """What `_Solve` is given beside tensors, and the shape of what it returns."""

    run: Callable[..., tuple[Tree, Tree]]
    pull: Callable[..., tuple[Tree, Tree]]
    inputs: tuple[Tree, Tree, Any]
    keep: bool
    value: Tree = None
    memory: Tree = None


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


def refuse_captured(values: Tree) -> None:
    """Refuse values that are still part of a graph, although all they were given is not."""
    if any(leaf.requires_grad for leaf in leaves(values)):
        raise ValueError(
            "the inner objective, init or the dynamics depend on a tensor that requires a gradient "
            "and stands neither in λ nor in the start, so its derivative would be lost: put it "
            "into λ, detach it, or use Unrolled"
        )
