"""The head that was chosen for a run after its training, kept beside its checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bilevel_apps.errors import InputError
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.files import read_json, write_text
from bilevel_apps.system.terminal import warn

if TYPE_CHECKING:
    from bilevel_models import heads

__all__ = ["ChosenInner", "chosen_inner", "numbers_of", "save_choice", "solver_of"]

NAME = "chosen.json"
NUMBERS = ("shrinkage", "temperature", "decay")


class ChosenInner(NamedTuple):
    """T and η, where None stands for that of the training; or what heads at their optimum need.

    The latter is for a run that was trained with T steps, or was calibrated: see `numbers_of`.
    """

    steps: int | None = None
    lr: float | None = None
    optimum: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """Return what JSON keeps of it."""
        own = {"steps": self.steps, "lr": self.lr}
        return own if self.optimum is None else {**own, "optimum": self.optimum}

    def __str__(self) -> str:
        """Return it for a message."""
        if self.optimum is not None:
            return "the head at its optimum"
        if self.steps is None:
            return "the head of the training"
        return f"T = {self.steps}" + ("" if self.lr is None else f" with η = {self.lr:.4g}")


def numbers_of(solver: heads.HeadSolver) -> dict[str, Any]:
    """Return all that a solver is made of, as JSON takes it."""
    numbers = {
        name.removeprefix("log_"): float(value.detach().exp())
        for name, value in solver.named_parameters()
    }
    return {**numbers, "running_mean": solver.running_mean.tolist()}


def solver_of(numbers: Mapping[str, Any]) -> heads.HeadSolver:
    """Return the solver of `numbers_of`."""
    import torch

    from bilevel_models.heads import HeadSolver

    mean = torch.tensor(numbers["running_mean"])
    solver = HeadSolver(len(mean), **{name: numbers[name] for name in NUMBERS})
    solver.running_mean.copy_(mean)
    return solver


def save_choice(folder: Path, chosen: ChosenInner, basis: Mapping[str, Any]) -> Path:
    """Write T and η with what they were chosen by, `checkpoint_sha256` in it; returns the file.

    Raises:
        InputError: the folder cannot be written, or a training is at work in it.
        RunError: the file cannot be written.
    """
    path = folder / NAME
    with RunFolder(folder).exclusive():
        write_text(path, json.dumps({**chosen.document(), **basis}, indent=2) + "\n")
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
        found = ChosenInner(choice["steps"], choice.get("lr"), choice.get("optimum"))
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
    steps, lr, optimum = found
    if optimum is not None:
        return steps is None and lr is None and _sound_numbers(optimum)
    if steps is not None and (type(steps) is not int or steps < 0):
        return False
    return lr is None or (type(lr) is float and 0 < lr < math.inf)


def _sound_numbers(optimum: Any) -> bool:
    if not isinstance(optimum, dict) or optimum.keys() != {*NUMBERS, "running_mean"}:
        return False
    mean = optimum["running_mean"]
    numbers = [optimum[name] for name in NUMBERS]
    if not isinstance(mean, list) or not mean or any(type(x) is not float for x in numbers + mean):
        return False
    return all(0 < x < math.inf for x in numbers) and all(map(math.isfinite, mean))


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged: delete it, and choose again with bilevel-eval --choose")
