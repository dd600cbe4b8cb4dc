"""Optimisers of `torch.optim`, for λ."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch

from bilevel_core.tree import leaves, map_leaves
from bilevel_core.types import Tree

__all__ = ["TorchOptimizer"]


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
