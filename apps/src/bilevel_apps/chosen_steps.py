"""The T that was chosen for a run after its training, kept beside the checkpoint it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilevel_apps.errors import InputError
from bilevel_apps.files import write_text
from bilevel_apps.report import warn
from bilevel_apps.run_folder import RunFolder

__all__ = ["chosen_steps", "save_choice"]

NAME = "chosen.json"


def save_choice(folder: Path, choice: Mapping[str, Any]) -> Path:
    """Write `steps`, `checkpoint_sha256` and how they were found; returns the file.

    Raises:
        InputError: the folder cannot be written, or a training is at work in it.
        RunError: the file cannot be written.
    """
    path = folder / NAME
    with RunFolder(folder).exclusive():
        write_text(path, json.dumps(choice, indent=2) + "\n")
    return path


def chosen_steps(folder: Path, checkpoint_sha256: str) -> int | None:
    """Return the T that was chosen for this checkpoint, if any.

    One that was chosen for other weights, before the training went on, costs a warning.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / NAME
    try:
        choice = json.loads(path.read_text("utf-8"))
        steps, sha256 = choice["steps"], choice["checkpoint_sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(path) from None
    if type(steps) is not int or steps < 0 or not isinstance(sha256, str):
        raise _damaged(path)
    if sha256 != checkpoint_sha256:
        warn(
            f"{path}: T = {steps} was chosen for weights that are no longer the best: taking the T "
            "of the training; choose again with bilevel-eval --choose"
        )
        return None
    return steps


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged: delete it, and choose T again with bilevel-eval --choose")
