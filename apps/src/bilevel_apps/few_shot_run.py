"""Loading what a few-shot answer is computed with: a run's folder, or a checkpoint by itself."""

from __future__ import annotations

from pathlib import Path

from bilevel_apps.build import make_task, model_tensors
from bilevel_apps.checkpoint import load_checkpoint
from bilevel_apps.errors import InputError
from bilevel_apps.hardware import choose_device, set_threads
from bilevel_apps.record import read_record
from bilevel_apps.trained_run import TrainedRun, load_run

__all__ = ["load_trained"]


def load_trained(path: Path, device: str) -> TrainedRun:
    """Load a run's folder as `load_run` does, or a checkpoint, which needs nothing beside it.

    Raises:
        InputError: there is no usable run.
    """
    try:
        alone = path.is_file()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return _load_checkpoint(path, device) if alone else load_run(path, device)


def _load_checkpoint(path: Path, device: str) -> TrainedRun:
    checkpoint = load_checkpoint(path)
    record = read_record(checkpoint, path)
    chosen = choose_device(device)
    set_threads(record.config.threads)
    task = make_task(record.config, record.image_shape, chosen)
    try:
        task.model.load_state_dict(model_tensors(checkpoint.tensors))
    except RuntimeError:  # names or shapes that differ, listed over many lines
        raise InputError(
            f"{path}: its weights are not those of the model that it names: restore a copy"
        ) from None
    return TrainedRun(
        config=record.config,
        task=task,
        path=path,
        step=record.step,
        sha256=str(checkpoint.file_sha256),
        image_shape=record.image_shape,
        data=record.environment.data,
        device=chosen,
    )
