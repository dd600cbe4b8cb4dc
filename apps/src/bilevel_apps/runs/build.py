"""From a configuration to the things it names: the store, episodes, the task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError
from bilevel_apps.system.plugins import VARIABLE
from bilevel_data import DataError, EpisodeSampler, EpisodeSpec, Store, open_store
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_meta.methods.variants import VARIANTS
from bilevel_models import create_model, keep_freed_memory, list_models
from bilevel_models.backbones.linear_output import with_linear_outputs

__all__ = [
    "backbone_options",
    "episode_sampler",
    "make_task",
    "model_tensors",
    "part_of",
    "settled_outputs",
    "store_of",
]


def store_of(path: str | Path | None) -> Store:
    """Open the store that a command was given.

    Raises:
        InputError: no store was given.
        bilevel_data.DataError: it is missing or unusable.
    """
    if path is None:
        raise InputError(
            "no data: give --data FILE.h5, made by `bilevel-data prepare NAME --out FILE.h5`"
        )
    return open_store(path)


def episode_sampler(
    store: Store,
    split: str,
    spec: Mapping[str, int],
    *,
    keys: str,
    seed: int,
    rotations: bool,
    overlap: bool = False,
) -> EpisodeSampler:
    """Read a split into memory and return a sampler of its episodes.

    Args:
        store: where the images are.
        split: which of them.
        spec: way, shot and query.
        keys: what a user would change if they do not fit, such as `--way, --shot or --query`.
        seed: which episodes.
        rotations: whether rotated copies count as classes.
        overlap: whether query images may be support images too.

    Raises:
        InputError: no such split, or it has too few classes or images.
        bilevel_data.DataError: the store is damaged.
    """
    if split not in store.splits:
        raise InputError(
            f"{store.path}: no split {split!r}: choose one that it has: {', '.join(store.splits)}"
        )
    images = store.load(split)
    try:
        return EpisodeSampler(
            images, EpisodeSpec(**spec), seed=seed, rotations=rotations, overlap=overlap
        )
    except DataError as error:
        raise InputError(f"{store.path}: {error} (change {keys})") from None


def make_task(
    config: Config, image_shape: tuple[int, ...], device: torch.device
) -> HyperRepresentation:
    """Return a learner with fresh weights, drawn from the configuration's seed.

    Args:
        config: the run's.
        image_shape: (height, width, channels) of the data set.
        device: where the weights go.

    Raises:
        InputError: the model does not exist or does not fit the images.
    """
    height, width, _ = image_shape
    if height != width:
        raise InputError(f"images of {height}×{width}: the models here take square images")
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    try:
        backbone = create_model(config.model.name, **backbone_options(config, image_shape))
    except ValueError as error:
        name = config.model.name
        known = name in list_models() or name.startswith(("torchvision:", "timm:"))
        hint = "" if known else f", or one that is registered by a module that {VARIABLE} names"
        raise InputError(f"model.name={name}: {error}{hint}") from None
    if config.model.outputs is not None:
        backbone = with_linear_outputs(backbone, config.model.outputs)
    if config.method == "classic-train" and not config.inner.steps:
        raise InputError(
            f"inner.steps={config.inner.steps}: method=classic-train moves representation and "
            "heads together so many times a meta-batch: set inner.steps to 1 or more"
        )
    learner = VARIANTS[config.method](
        backbone,
        norm=config.model.norm,
        unit_length=config.model.unit_length,
        bfloat16=config.precision == "bfloat16",
        steps=config.inner.steps,
        step_size=config.inner.lr,
        scale=config.inner.scale,
        learn_step_size=config.inner.learn_lr,
        learn_scale=config.inner.learn_scale,
        label_smoothing=config.train.label_smoothing,
    )
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner.to(device)


def settled_outputs(config: Config, classes: int) -> int | None:
    """Return `model.outputs`: where one classifier is trained, one for each training class.

    Raises:
        InputError: another number was asked for.
    """
    outputs = config.model.outputs
    if config.method != "multiclass":
        return outputs
    if outputs not in (None, classes):
        raise InputError(
            f"model.outputs={outputs}: method=multiclass has one for each of the {classes} classes "
            "of the split 'train', rotated copies included: leave it null"
        )
    return classes


def backbone_options(config: Config, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the options of `create_model` for images (height, width, channels)."""
    height, _, channels = image_shape
    chosen = {"filters": config.model.filters, "kernel_size": config.model.kernel_size}
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"channels": channels, "image_size": height, **given}


def model_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's weights to use, under the model's own names: the average, if any."""
    return part_of(tensors, "average") or part_of(tensors, "model")


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of one part of a checkpoint, under the names that they have there."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
