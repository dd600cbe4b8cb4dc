"""The T and η that were chosen for a run after its training, kept beside its checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bilevel_apps.errors import InputError
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.files import read_json, write_text
from bilevel_apps.system.terminal import warn

__all__ = ["ChosenInner", "chosen_inner", "save_choice"]

NAME = "chosen.json"


class ChosenInner(NamedTuple):
    """T and η; None stands for that of the training."""

    steps: int | None = None
    lr: float | None = None

    def __str__(self) -> str:
        """Return it for a message."""
        if self.steps is None:
            return "the head of the training"
        return f"T = {self.steps}" + ("" if self.lr is None else f" with η = {self.lr:.4g}")


def save_choice(folder: Path, chosen: ChosenInner, basis: Mapping[str, Any]) -> Path:
    """Write T and η with what they were chosen by, `checkpoint_sha256` in it; returns the file.

    Raises:
        InputError: the folder cannot be written, or a training is at work in it.
        RunError: the file cannot be written.
    """
    path = folder / NAME
    with RunFolder(folder).exclusive():
        write_text(path, json.dumps({**chosen._asdict(), **basis}, indent=2) + "\n")
    return path


def chosen_inner(folder: Path, checkpoint_sha256: str, *, best: bool = True) -> ChosenInner:
    """Return the T and η that were chosen for this checkpoint, if any.

    Args:
        folder: the one that the checkpoint is in.
        checkpoint_sha256: of its file.
        best: it is the run's best one: a choice for other weights, before the training went on,
            then costs a warning.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / NAME
    try:
        choice = read_json(path)
        found = ChosenInner(choice["steps"], choice.get("lr"))
        sha256 = choice["checkpoint_sha256"]
    except FileNotFoundError:
        return ChosenInner()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(path) from None
    if not _sound(found) or not isinstance(sha256, str):
        raise _damaged(path)
    if sha256 == checkpoint_sha256:
        return found
    if best:
        warn(
            f"{path}: {found} was chosen for weights that are no longer the best: taking that of "
            "the training; choose again with bilevel-eval --choose"
        )
    return ChosenInner()


def _sound(found: ChosenInner) -> bool:
    steps, lr = found
    if type(steps) is not int or steps < 0:
        return False
    return lr is None or (type(lr) is float and 0 < lr < math.inf)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged: delete it, and choose again with bilevel-eval --choose")
