"""torchvision, imported here and nowhere else in this package."""

from importlib import import_module
from typing import Any

from bilevel_data.errors import DataError

__all__ = ["import_datasets"]

_SYMPTOM = "operator torchvision::nms does not exist"
_MISSING = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_datasets() -> Any:
    """The module `torchvision.datasets`.

    A torchvision built for CUDA beside a torch built for the CPU cannot load its compiled
    operators and stops at two that it describes to torch. Their schemas are then declared, and
    the import is tried once more: data sets, transforms and models work, the operators do not.

    Raises:
        DataError: torchvision is not installed.
    """
    try:
        return _import()
    except ModuleNotFoundError as err:
        if err.name not in ("torch", "torchvision"):
            raise
        msg = "torchvision: not installed: install bilevel-data[torchvision]"
        raise DataError(msg) from None
    except RuntimeError as err:
        if _SYMPTOM not in str(err):
            raise
    define = import_module("torch.library").define
    for name, schema in _MISSING.items():
        define(f"torchvision::{name}", schema)
    return _import()


def _import() -> Any:
    return import_module("torchvision.datasets")
