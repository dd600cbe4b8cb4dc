"""What residual blocks share: three convolutions, and a gradient that keeps little in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bilevel_models.normalization import OffsetNorm2d, Statistics
from bilevel_models.refusals import refuse_second_derivatives

__all__ = [
    "Normalise",
    "convolved_thrice",
    "differentiable_twice",
    "leaky_relu",
    "recomputed",
    "three_convolutions",
]

_TWICE: ContextVar[bool] = ContextVar("twice", default=False)


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Let networks called within keep what a second derivative of their output needs.

    Outside, residual networks recompute activations for the gradient, which can then be taken once.
    """
    token = _TWICE.set(True)
    try:
        yield
    finally:
        _TWICE.reset(token)


# Normalises a tensor with a layer, by the statistics of the pass under way.
Normalise: TypeAlias = Callable[[OffsetNorm2d, Tensor], Tensor]


def three_convolutions(channels: int, filters: int, kernel_size: int) -> nn.ModuleList:
    """Return a block's convolutions, which have no bias and keep the height and width."""
    return nn.ModuleList(
        nn.Conv2d(i, o, kernel_size, padding=kernel_size // 2, bias=False)
        for i, o in itertools.pairwise([channels] + [filters] * 3)
    )


def leaky_relu(x: Tensor) -> Tensor:
    """Return max(x, x/10), written over x: what a normalisation returns no gradient needs."""
    return functional.leaky_relu(x, 0.1, inplace=True)


def convolved_thrice(
    convolutions: nn.ModuleList, norms: nn.ModuleList, x: Tensor, statistics: Statistics
) -> Tensor:
    """Return w₃ ∗ r(n₂(w₂ ∗ r(n₁(w₁ ∗ x)))), w the convolutions, n the norms, r the rectifier."""
    y: Tensor = convolutions[0](x)
    for norm, convolution in zip(norms, convolutions[1:], strict=False):
        y = recomputed(_link(norm, convolution), statistics, y)
    return y


def _link(norm: nn.Module, convolution: nn.Module) -> Callable[[Normalise, Tensor], Tensor]:
    def work(normalise: Normalise, y: Tensor) -> Tensor:
        result: Tensor = convolution(leaky_relu(normalise(norm, y)))  # type: ignore[arg-type]
        return result

    return work


def recomputed(work: Callable[..., Tensor], statistics: Statistics, *inputs: Tensor) -> Tensor:
    """Return work(normalise, *inputs), of which nothing but the inputs is kept for the gradient.

    What the gradient needs of `work` is computed once more, up to the last tensor that it needs:
    where `work` ends in a convolution, that is not run again. Running averages follow once.

    Args:
        work: normalises, by the function that it is given, and is done again with another one.
        statistics: of the normalisation.
        inputs: what it works on.
    """

    def normalise(norm: OffsetNorm2d, y: Tensor) -> Tensor:
        result: Tensor = norm(y, statistics)
        return result

    # Transforms of torch.func know no recomputation.
    transformed = torch._C._are_functorch_transforms_active()
    if not torch.is_grad_enabled() or transformed or _TWICE.get():
        return work(normalise, *inputs)
    passes = itertools.count()

    def run(*inputs: Tensor) -> Tensor:
        return work(normalise if next(passes) == 0 else once_more, *inputs)

    def once_more(norm: OffsetNorm2d, y: Tensor) -> Tensor:
        # The same operations must run, so the averages that follow are copies.
        copies = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        result: Tensor = torch.func.functional_call(norm, copies, (y, statistics))
        return result

    result: Tensor = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
    if result.requires_grad:
        result.register_hook(_refuse)  # type: ignore[no-untyped-call]
    return result


def _refuse(grad: Tensor) -> None:
    # The gradient of a recomputed activation would be silently wrong.
    del grad
    refuse_second_derivatives("a residual block", "call the network in differentiable_twice()")
