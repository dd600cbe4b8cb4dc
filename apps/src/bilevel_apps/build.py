"""From a configuration to the things it names: device, model, task, samplers, checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from bilevel_apps.checkpoint import Checkpoint, load_checkpoint
from bilevel_apps.config import Config
from bilevel_apps.errors import InputError
from bilevel_apps.meta_task import HyperRepresentation, MetaTask
from bilevel_apps.run_folder import RunFolder
from bilevel_data import EpisodeSampler, EpisodeSpec, ImageSplit, Store, open_store
from bilevel_models import Encoder, Normalization, create_model

__all__ = [
    "TrainedRun",
    "choose_device",
    "choose_precision",
    "episode_sampler",
    "load_run",
    "load_split",
    "make_task",
    "model_tensors",
    "set_threads",
    "store_of",
]


def set_threads(threads: int | None) -> int:
    """Set and return the number of threads: as given, or all that the process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = threads or available or 1
    torch.set_num_threads(count)
    return count


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        InputError: another name, or cuda was asked for and is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: no CUDA device is available here: use --device cpu or auto"
        )
    use_cuda = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision for `auto`: bfloat16 where the hardware computes in it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        native = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"


def store_of(path: str | None) -> Store:
    """Open the store that a command was given.

    Raises:
        InputError: no store was given.
        bilevel_data.DataError: it is missing or unusable.
    """
    if path is None:
        raise InputError(
            "no data: give --data FILE.h5, made by `bilevel-data prepare NAME --out FILE.h5`"
        )
    return open_store(Path(path))


def load_split(store: Store, name: str) -> ImageSplit:
    """Read a split into memory.

    Raises:
        InputError: the store has no such split.
    """
    if name not in store.splits:
        raise InputError(
            f"{store.path}: no split {name!r}: choose one that it has: {', '.join(store.splits)}"
        )
    return store.load(name)


def episode_sampler(
    split: ImageSplit, *, way: int, shot: int, query: int, seed: int, rotations: bool
) -> EpisodeSampler:
    """Return a sampler of episodes; too many ways or images raise `DataError`."""
    spec = EpisodeSpec(way=way, shot=shot, query=query)
    return EpisodeSampler(split, spec, seed=seed, rotations=rotations)


def make_task(config: Config, image_shape: tuple[int, ...], device: torch.device) -> MetaTask:
    """Return a task with fresh weights, drawn from the configuration's seed.

    Args:
        config: the run's.
        image_shape: (height, width, channels) of the data set.
        device: where the weights go.

    Raises:
        InputError: the model does not exist or does not fit the images.
    """
    height, width, channels = image_shape
    if height != width:
        raise InputError(f"images of {height}×{width}: the models here take square images")
    options = {"channels": channels, "image_size": height}
    if config.model.filters is not None:
        options["filters"] = config.model.filters
    torch.manual_seed(config.seed)
    try:
        backbone = create_model(config.model.name, **options)
    except ValueError as error:
        raise InputError(f"model.name={config.model.name}: {error}") from None
    model = HyperRepresentation(
        backbone,
        inner_lr=config.inner.lr,
        scale=config.inner.scale,
        learn_lr=config.inner.learn_lr,
        learn_scale=config.inner.learn_scale,
    )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(device)
    encoder = Encoder(
        backbone=model.backbone,
        normalization=Normalization(config.model.norm),
        unit_length=config.model.unit_length,
        bfloat16=config.precision == "bfloat16",
    )
    return MetaTask(model=model, encoder=encoder, steps=config.inner.steps)


def model_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's weights under the model's own names."""
    prefix = "model."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@final
@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished or interrupted run, ready to be used."""

    config: Config
    task: MetaTask
    checkpoint: Checkpoint
    path: Path
    image_shape: tuple[int, ...]
    device: torch.device


def load_run(folder: Path, device: str) -> TrainedRun:
    """Load a run's best checkpoint, or its last where none has validated yet.

    Raises:
        InputError: the folder holds no usable run.
    """
    run = RunFolder(folder)
    config = run.load_config()
    path = run.best if run.best.exists() else run.last
    if not path.exists():
        raise InputError(f"{folder}: no checkpoint yet: train it first, or go on with --resume")
    checkpoint = load_checkpoint(path)
    image_shape = tuple(checkpoint.record["image_shape"])
    chosen = choose_device(device)
    task = make_task(config, image_shape, chosen)
    try:
        task.model.load_state_dict(model_tensors(checkpoint.tensors))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: does not fit config.yaml beside it ({reason})") from None
    return TrainedRun(
        config=config,
        task=task,
        checkpoint=checkpoint,
        path=path,
        image_shape=image_shape,
        device=chosen,
    )
