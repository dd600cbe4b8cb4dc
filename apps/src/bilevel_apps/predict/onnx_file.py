"""A program of torch.export as an ONNX file, and the answers that onnxruntime gets from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from bilevel_apps.errors import InputError

__all__ = ["onnx_bytes", "onnx_program"]

EXTRA = "onnx, onnxscript and onnxruntime are missing: install bilevel-apps[onnx]"


def onnx_bytes(program: ExportedProgram, card: str, name: str) -> bytes:
    """Return an ONNX file with the weights in it, and a card among its metadata as `name`.

    Raises:
        InputError: a package is missing.
    """
    _import("onnxscript")  # which torch's exporter needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        found: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    found.model.metadata_props[name] = card
    with TemporaryDirectory() as scratch:
        path = Path(scratch, "program.onnx")
        found.save(path, external_data=False)
        return path.read_bytes()


def onnx_program(content: bytes) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return what an ONNX file computes, by onnxruntime.

    Raises:
        InputError: the package is missing.
    """
    session = _import("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        given = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise InputError(EXTRA) from None
