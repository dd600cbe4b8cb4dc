"""What guards the heads: input that does not fit, runs that diverged, and autocast's rounding."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from bilevel_models.heads.linear import Head

__all__ = [
    "HeadDivergenceError",
    "check_finite",
    "check_initial",
    "check_run",
    "check_sets",
    "check_steps",
    "positive",
    "precise",
    "scalar",
    "without_autocast",
]


class HeadDivergenceError(ArithmeticError):
    """The heads' training diverged, so that neither they nor a gradient means anything."""


def check_run(steps: int, first: Tensor, last: Tensor, state: Tensor) -> None:
    """Refuse a run that ended not finite, or whose last velocity is 1/ε times its first.

    The velocity is a step's length per unit of step size: step sizes may begin small and grow.

    Args:
        steps: T > 0.
        first: the first step's velocity, ‖v_1‖, a scalar.
        last: the last step's, ‖v_T‖.
        state: where the run ended.
    """
    norm = torch.linalg.vector_norm(state)
    begin, end, size = torch.stack((first, last, norm)).tolist()
    limit = 1.0 / torch.finfo(state.dtype).eps
    if not (math.isfinite(size) and math.isfinite(end)):
        raise HeadDivergenceError(
            f"the heads are not finite after T = {steps} inner steps: lower the step size, or look "
            "for features that are not finite"
        )
    if 0 < begin * limit < end:
        raise HeadDivergenceError(
            f"the heads' training grows without bound: the last of T = {steps} inner steps is, for "
            f"its step size, {end / begin:.2g} times the first; lower the step size"
        )


def check_finite(matrix: Tensor) -> None:
    """Refuse features whose Gram matrix has entries that are not finite numbers."""
    if not math.isfinite(float(torch.linalg.vector_norm(matrix.detach()))):
        raise HeadDivergenceError(
            f"the Gram matrix of the support features, of shape {tuple(matrix.shape)}, is not "
            "finite: lower the scale or the outer learning rate"
        )


def check_sets(support: Tensor, targets: Tensor) -> None:
    """Refuse features and targets that are not (batch, n, dim) and (batch, n, way) of one dtype."""
    if support.ndim != 3 or targets.ndim != 3 or support.shape[:2] != targets.shape[:2]:
        raise ValueError(
            "expected support features (batch, n, dim) and targets (batch, n, way), found shapes "
            f"{tuple(support.shape)} and {tuple(targets.shape)}: give one target an image"
        )
    if support.shape[1] == 0:
        raise ValueError("expected at least one support image an episode, found none: add some")
    if not support.is_floating_point() or targets.dtype != support.dtype:
        raise TypeError(
            "expected floating-point features and targets of one dtype, found "
            f"{support.dtype} and {targets.dtype}: make targets of labels with one_hot"
        )


def check_initial(initial: Head, support: Tensor, targets: Tensor) -> Head:
    """Return initial weights expanded over the batch; refuse those that do not fit.

    Those of another training are for the scale of this one.
    """
    (batch, _, dim), way = support.shape, targets.shape[2]
    wanted = {"weight": (dim, way), "bias": (1, way)}
    initial = {name: leaf for name, leaf in initial.items() if name != "scale"}
    found = {name: tuple(leaf.shape) for name, leaf in initial.items()}
    if {name: shape[1:] for name, shape in found.items()} != wanted or any(
        shape[0] not in (1, batch) for shape in found.values()
    ):
        raise ValueError(
            f"initial weights have shapes {found} for features {tuple(support.shape)} and "
            f"{way} classes: expected weight (batch or 1, {dim}, {way}) and bias "
            f"(batch or 1, 1, {way})"
        )
    return {name: leaf.to(support).expand(batch, -1, -1) for name, leaf in initial.items()}


def check_steps(steps: int) -> None:
    """Refuse a number of steps that is not a natural number."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, found {steps!r}: give T as a whole number")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, found {steps}: 0 leaves the heads untrained")


def scalar(value: Tensor | float, name: str, like: Tensor) -> Tensor:
    """Return a number as a scalar tensor like another one, with its graph if it has one."""
    number = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if number.ndim:
        raise ValueError(f"{name} must be a single number, found shape {tuple(number.shape)}")
    return number


def positive(value: Tensor | float, name: str, like: Tensor) -> Tensor:
    """Return a positive number as `scalar` does; refuse others."""
    number = scalar(value, name, like)
    if not (found := float(number.detach())) > 0:
        raise ValueError(f"{name} must be positive, found {found}: without it no head is unique")
    return number


Training = TypeVar("Training", bound=Callable[..., Head])


def precise(training: Training) -> Training:
    """Return a training of heads that autocast makes no less precise; without it, the same one.

    Within autocast, heads are trained in float64 and returned in the features' dtype. Autocast
    leaves float64 alone, also in a backward pass of any order: turned off around the training, it
    would still round the products of a backward pass within it.

    Raises:
        TypeError, ValueError: within autocast, features and targets that do not fit each other.
    """

    @functools.wraps(training)
    def trained(support: Tensor, targets: Tensor, **options: Any) -> Head:
        if not torch.is_autocast_enabled(support.device.type):
            return training(support, targets, **options)
        check_sets(support, targets)  # before they come to have one dtype
        head = training(support.double(), targets.double(), **options)
        return {name: leaf.to(support.dtype) for name, leaf in head.items()}

    return cast("Training", trained)


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves alone what runs on a tensor's device.

    For a backward pass within autocast of a forward pass outside.
    """
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
