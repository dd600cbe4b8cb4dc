"""A checkpoint: one safetensors file that holds tensors, a JSON record and their SHA-256.

One file and not two, so that no kill can leave weights beside the record of other weights. The
digest covers the record and every tensor's name, type, shape and bytes: a flipped bit is noticed.
Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bilevel_apps.config import short
from bilevel_apps.errors import InputError, RunError
from bilevel_data import DataError
from bilevel_data.files.atomic import commit, temporary
from bilevel_data.files.limits import MAX_CHECKPOINT_BYTES
from bilevel_data.files.regular_file import read_plain

__all__ = [
    "FORMAT",
    "REMEDY",
    "Checkpoint",
    "load_checkpoint",
    "load_plain",
    "save_checkpoint",
    "tensors_sha256",
]

FORMAT = "bilevel-checkpoint-1"
ENTRY = "bilevel"
REMEDY = "restore a copy, or give a checkpoint of bilevel-train"


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name, a record that JSON can hold, and the SHA-256 of the file it came from."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    file_sha256: str | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, rename it.

    Raises:
        RunError: it cannot be written; a checkpoint that stood there before is untouched.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()
    }
    record = json.dumps(checkpoint.record, sort_keys=True)
    header = {"format": FORMAT, "record": record, "sha256": tensors_sha256(tensors, record)}
    # One entry of metadata: safetensors writes several in no fixed order, and equal checkpoints
    # are to be equal files.
    content = safetensors.torch.save(tensors, {ENTRY: json.dumps(header, sort_keys=True)})
    try:
        with temporary(path) as scratch:
            scratch.write_bytes(content)
            commit(scratch, path)
    except (OSError, DataError) as error:
        raise RunError(f"{path}: cannot write the checkpoint ({error})") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check its digest.

    Raises:
        InputError: it is missing, damaged, or not a checkpoint of this program.
    """
    return _checked(path, *_read(path))


def load_plain(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a safetensors file of another program, or None of a checkpoint.

    Raises:
        InputError: it is missing or damaged.
    """
    content, tensors = _read(path)
    return None if _header(content) else tensors


def _read(path: Path) -> tuple[bytes, dict[str, Tensor]]:
    try:
        content = read_plain(path, MAX_CHECKPOINT_BYTES, what="a checkpoint", remedy=REMEDY)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint: {REMEDY}") from None
    except DataError as error:
        raise InputError(str(error)) from None
    try:
        return content, safetensors.torch.load(content)
    # Beside its own error: a type of numbers that torch lacks, or a shape that does not fit.
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: damaged or not a checkpoint ({reason}): {REMEDY}") from None


def _checked(path: Path, content: bytes, tensors: dict[str, Tensor]) -> Checkpoint:
    header = _header(content)
    if header.get("format") != FORMAT:
        found = short(header.get("format", "none")).strip("'")
        raise InputError(
            f"{path}: not a checkpoint of bilevel: expected format {FORMAT}, found {found}: "
            f"{REMEDY}"
        )
    record = str(header.get("record"))
    if tensors_sha256(tensors, record) != header.get("sha256"):
        raise InputError(f"{path}: damaged: its contents do not match its SHA-256; restore a copy")
    try:
        parsed = json.loads(record)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: its record is not JSON: {REMEDY}") from None
    return Checkpoint(
        tensors=tensors,
        record=parsed,
        file_sha256=hashlib.sha256(content).hexdigest(),
    )


def _header(content: bytes) -> dict[str, Any]:
    """Return our entry in the header of a safetensors file: its length, then as much JSON."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][ENTRY])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def tensors_sha256(tensors: Mapping[str, Tensor], record: str = "") -> str:
    """Return the SHA-256 of a text and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
