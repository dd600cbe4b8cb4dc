"""What a run's checkpoint says beside its tensors, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from bilevel_apps.config import (
    Config,
    Count,
    CountOrZero,
    NonNegative,
    Number,
    Switch,
    parse_config,
    short,
)
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import make_learner, model_tensors
from bilevel_apps.runs.checkpoint import REMEDY, Checkpoint
from bilevel_meta.learner import Learner

__all__ = ["Ending", "Environment", "RunRecord", "read_record"]


class Ending(StrEnum):
    """Why a run ended; each is the key of `train` that decided it."""

    STEPS = "steps"
    MINUTES = "minutes"
    PATIENCE = "patience"


class Environment(BaseModel):
    """What a run's last bits depend on beside its configuration; a change of it is told.

    Attributes:
        data: SHA-256 of the pixels of each split.
        mix: weights of other stores' training images, by the SHA-256 of their pixels.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    threads: Count
    processes: Count = 1
    device: str
    python: str
    torch: str
    bilevel: str
    data: dict[str, str]
    mix: dict[str, Number] = {}


class RunRecord(BaseModel):
    """Where a training was when the checkpoint was taken.

    Attributes:
        step: hyper-iterations done.
        best_accuracy: of the best validation, -1 before the first.
        best_ci95: half the 95 % interval of it, where the version that wrote the record kept it.
        best_step: hyper-iterations done at the best validation.
        ended: why the run has come to its end, if it has.
        seconds: what it had taken, where `train.minutes` limits that.
        validated: whether the validation was made, if one was due: not where a signal ended it.
        sums: what hyper-iterations have reported since the last entry of the log, added up.
        count: how many of them.
        config: what is run.
        image_shape: (height, width, channels) of the images.
        preprocessing: how the store says that its images were made; words, in a record of a
            version that had no more.
        features: SHA-256 of the weights behind the features that were learned from, if any.
        environment: in which.
    """

    model_config = ConfigDict(frozen=True)

    step: CountOrZero
    best_accuracy: Number
    best_ci95: NonNegative | None = None
    best_step: CountOrZero
    ended: Ending | None = None
    seconds: NonNegative | None = None
    validated: Switch = True
    sums: dict[str, Number] = {}
    count: CountOrZero = 0
    config: Config
    image_shape: tuple[Count, Count, Count]
    preprocessing: dict[str, Any] | str | None = None
    features: str | None = None
    environment: Environment

    def as_json(self) -> dict[str, Any]:
        """Return what `read_record` reads.

        What does not count is left out: equal runs then have equal checkpoints.
        """
        silent = {
            "seconds": self.seconds is None,
            "validated": self.validated,
            "features": self.features is None,
        }
        exclude: dict[str, Any] = {key: True for key in silent if silent[key]}
        if not self.environment.mix:
            exclude["environment"] = {"mix"}
        return self.model_dump(mode="json", exclude=exclude)


def read_record(checkpoint: Checkpoint, path: Path) -> RunRecord:
    """Return the record of a checkpoint that was read from `path`.

    Raises:
        InputError: it is not what a training of this version writes.
    """
    record = checkpoint.record
    try:
        if isinstance(record, dict) and isinstance(record.get("config"), dict):
            parse_config(record["config"], f"{path}: config")  # its messages are clearer
        found = RunRecord.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "record"
        what = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(
            f"{path}: its record is not that of a training of this version ({key}: {what}, found "
            f"{short(first['input'])}): begin anew in another `out`"
        ) from None
    _check_weights(checkpoint, found, path)
    return found


def _check_weights(checkpoint: Checkpoint, record: RunRecord, path: Path) -> None:
    """Refuse weights that are not numbers, or not those of the model that the record names.

    The model is built without memory, so that a record cannot ask for more than the file holds.

    Raises:
        InputError: the weights are not numbers, or of another model.
    """
    try:
        learner = _without_memory(record)
    except InputError as error:
        raise InputError(f"{path}: {error}; {REMEDY}") from None
    except (ValueError, RuntimeError, OverflowError):  # sizes beyond what can be counted
        raise _other_weights(path) from None
    weights = model_tensors(checkpoint.tensors)
    if _kinds(weights) != _kinds(learner.state_dict()):
        raise _other_weights(path)
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise InputError(f"{path}: its weights are not all finite numbers: {REMEDY}")


def _kinds(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (weight.shape, weight.dtype) for name, weight in weights.items()}


def _without_memory(record: RunRecord) -> Learner:
    try:
        with torch.device("meta"):
            return make_learner(record.config, record.image_shape, torch.device("meta"))
    except InputError:
        # Some networks of other libraries look at their weights' values while they are built. Their
        # sizes are the libraries' own, so a record cannot ask for more than those.
        if not record.config.model.name.startswith(("torchvision:", "timm:")):
            raise
        return make_learner(record.config, record.image_shape, torch.device("cpu"))


def _other_weights(path: Path) -> InputError:
    return InputError(
        f"{path}: its tensors are not those of its configuration: it was written by another "
        "version, or damaged: restore a copy"
    )
