"""Heads within `torch.autocast`, which rounds the operands of matrix products to 16 bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from bilevel_models.heads.checks import check_sets
from bilevel_models.heads.linear import Head

__all__ = ["precise", "without_autocast"]

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
