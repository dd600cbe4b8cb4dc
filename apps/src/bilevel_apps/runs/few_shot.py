"""Loading what a few-shot answer is computed with: a run's folder, or a checkpoint by itself."""

from __future__ import annotations

from pathlib import Path

from bilevel_apps.errors import InputError
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.chosen_inner import chosen_inner
from bilevel_apps.runs.load import TrainedRun, load_run, run_of

__all__ = ["load_trained"]


def load_trained(path: Path, device: str) -> TrainedRun:
    """Load what `load_run` does, or a checkpoint, which needs nothing beside it.

    T and η are those that a `chosen.json` beside it has for its very bytes, or else the training's.

    Raises:
        InputError: there is no usable run.
    """
    try:
        alone = path.is_file()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not alone:
        return load_run(path, device)
    checkpoint = load_checkpoint(path)
    chosen = chosen_inner(path.parent, str(checkpoint.file_sha256), best=False)
    return run_of(checkpoint, path, device, chosen=chosen)
