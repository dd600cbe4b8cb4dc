"""The one place that imports torchvision, which is an extra."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch

__all__ = ["torchvision_module"]


def torchvision_module(name: str) -> Any:
    """Import and return a module of torchvision, such as `torchvision.models`.

    A torchvision built for CUDA cannot load its operators beside a torch built for the CPU, and
    its import then fails on two operators that no classification model needs. They are declared
    without being defined, and the import is tried once more.

    Raises:
        ValueError: torchvision is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ValueError(
            "torchvision is not installed: install bilevel-models with its extra [torchvision]"
        ) from None
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    _declare_operators()
    return import_module(name)


@functools.cache  # the declarations last as long as the library that made them
def _declare_operators() -> Any:
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
