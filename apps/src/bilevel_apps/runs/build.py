"""From a configuration to the things it names: the store, episodes, the learner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError
from bilevel_apps.system.plugins import VARIABLE
from bilevel_data import (
    DataError,
    EpisodeSampler,
    EpisodeSpec,
    ImageSplit,
    Store,
    VariedSampler,
    VariedSpec,
    open_store,
)
from bilevel_meta.learner import HeadLearner, Learner
from bilevel_meta.methods.variants import VARIANTS
from bilevel_meta.registry import create_learner
from bilevel_models import Precomputed, create_model, keep_freed_memory, list_models
from bilevel_models.backbones.linear_output import with_linear_outputs

__all__ = [
    "FEATURES",
    "PRETRAINED",
    "backbone_options",
    "check_features",
    "check_size",
    "episode_sampler",
    "make_learner",
    "model_tensors",
    "part_of",
    "settled_outputs",
    "store_of",
    "training_sampler",
]


def store_of(path: str | Path | None) -> Store:
    """Open the store that a command was given.

    Raises:
        InputError: no store was given.
        bilevel_data.DataError: it is missing or unusable.
    """
    if path is None:
        raise InputError(
            "no data: give `data`=FILE.h5, made by `bilevel-data prepare NAME --out FILE.h5`"
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
        keys: what a user would change if they do not fit, such as `way`, `shot` or `query`.
        seed: which episodes.
        rotations: whether rotated copies count as classes.
        overlap: whether query images may be support images too.

    Raises:
        InputError: no such split, or it has too few classes or images.
        bilevel_data.DataError: the store is damaged.
    """
    images = _split(store, split)
    with _fitting(store, keys):
        return EpisodeSampler(
            images, EpisodeSpec(**spec), seed=seed, rotations=rotations, overlap=overlap
        )


def training_sampler(store: Store, config: Config) -> EpisodeSampler | VariedSampler:
    """Read the training split and return a sampler of meta-batches.

    Where way or shot is a range, each meta-batch draws its own, the same for all of its classes.

    Raises:
        InputError: no such split, or it has too few classes or images.
        bilevel_data.DataError: the store is damaged.
    """
    episode, training = config.episode, config.train
    way, shot = training.way or episode.way, training.shot or episode.shot
    query = training.query or episode.query
    keys = "train.way, train.shot or train.query; where null, those of episode"
    rotations, overlap = bool(episode.rotations), training.overlap
    if isinstance(way, int) and isinstance(shot, int):
        return episode_sampler(
            store,
            "train",
            {"way": way, "shot": shot, "query": query},
            keys=keys,
            seed=config.seed,
            rotations=rotations,
            overlap=overlap,
        )
    images = _split(store, "train")
    with _fitting(store, keys):
        return VariedSampler(
            images,
            VariedSpec(way=_range(way), shot=_range(shot), query=query, uneven=False),
            seed=config.seed,
            rotations=rotations,
            overlap=overlap,
            block=training.meta_batch,
        )


def _range(number: int | tuple[int, int]) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else number


def _split(store: Store, split: str) -> ImageSplit:
    if split not in store.splits:
        raise InputError(
            f"{store.path}: no split {split!r}, which training needs, only "
            f"{', '.join(store.splits)}: prepare a store with one"
        )
    return store.load(split)


@contextmanager
def _fitting(store: Store, keys: str) -> Iterator[None]:
    """Say which keys a user would change where episodes do not fit a store."""
    try:
        yield
    except DataError as error:
        raise InputError(f"{store.path}: {error} (change {keys})") from None


FEATURES = "features"
"""The name, as a model, of features that are in the store already."""

PRETRAINED = ("baseline", "baseline++", "multiclass", "simpleshot")
"""Methods that train one classifier of all training classes."""


def make_learner(config: Config, image_shape: tuple[int, ...], device: torch.device) -> Learner:
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
        where = "images" if config.data is None else f"{config.data}: images"
        raise InputError(
            f"{where} of {height}×{width}: the models here take square ones: prepare them so, such "
            f"as with `bilevel-data prepare folder --option size={min(height, width)}`"
        )
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    backbone = _make_backbone(config, image_shape)
    if config.method not in VARIANTS:
        learner = _make_other(config, backbone, image_shape)
        return learner.to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload, no-any-return]
    if config.options:
        raise InputError(
            f"options={config.options}: method={config.method} has none; its settings are in inner"
        )
    if config.method == "classic-train" and not config.inner.steps:
        raise InputError(
            f"inner.steps={config.inner.steps}: method=classic-train moves representation and "
            "heads together so many times a meta-batch: set inner.steps to 1 or more"
        )
    representation = VARIANTS[config.method](
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
    representation.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return representation.to(device)


def _make_backbone(config: Config, image_shape: tuple[int, ...]) -> torch.nn.Module:
    """Return the network, with a linear layer at its end where one is asked for.

    Raises:
        InputError: there is no such model, or it does not fit the images.
    """
    name, outputs = config.model.name, config.model.outputs
    try:
        if name == FEATURES:
            backbone: torch.nn.Module = Precomputed(image_shape[2])
        else:
            backbone = create_model(name, **backbone_options(config, image_shape))
    except ValueError as error:
        known = name in list_models() or name.startswith(("torchvision:", "timm:"))
        hint = "" if known else f", or one that is registered by a module that {VARIABLE} names"
        raise InputError(f"model.name={name}: {error}{hint}") from None
    # Where one classifier of all classes is trained, but for multiclass, it is the method's own.
    own = config.method in PRETRAINED and config.method not in VARIANTS
    return backbone if outputs is None or own else with_linear_outputs(backbone, outputs)


def _make_other(config: Config, backbone: torch.nn.Module, image_shape: tuple[int, ...]) -> Learner:
    """Return the learner of a method that is no variant of the hyper-representation.

    Raises:
        InputError: the method's options or the normalisation do not suit it.
    """
    given = {
        "way": config.episode.way,
        "shot": config.episode.shot,
        "classes": config.model.outputs or 2,  # settled before a training begins
        "image_shape": image_shape,
        "norm": config.model.norm,
        "bfloat16": config.precision == "bfloat16",
    }
    try:
        learner = create_learner(config.method, backbone, given=given, options=config.options)
    except ValueError as error:
        raise InputError(f"method={config.method}: {error} (model.norm, options)") from None
    learner.label_smoothing = config.train.label_smoothing
    return learner


def check_features(config: Config, store: Store, learner: Learner) -> None:
    """Refuse settings that do not suit features, or pictures.

    Raises:
        InputError: features are to go through a network, or pictures through none; the method moves
            a network or has nothing to learn; or pictures are to be turned or changed.
    """
    features, name = store.manifest.features, config.model.name
    if features is None:
        if name == FEATURES:
            raise InputError(
                f"{store.path}: holds pictures, and model.name={FEATURES} takes the features that "
                "`bilevel-data features` makes of them: make those, or name a network"
            )
        return
    if name != FEATURES:
        raise InputError(
            f"{store.path}: holds features of {features}: set model.name={FEATURES}, or give the "
            f"store of the pictures for model.name={name}"
        )
    if not isinstance(learner, HeadLearner):
        raise InputError(
            f"method={config.method}: moves the weights of a network, and {store.path} holds "
            "features: choose a method with heads, such as hyper-representation or ridge"
        )
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise InputError(
            f"method={config.method}: has nothing to learn on features: set model.outputs=64, a "
            "linear layer of so many outputs, or another method"
        )
    for key, given in (("augment", config.train.augment), ("small", config.train.small)):
        if given:
            raise InputError(
                f"train.{key}={given}: {store.path} holds features, which cannot be changed as "
                "pictures can: set it to null"
            )


def check_size(config: Config, image_shape: tuple[int, ...], size: int) -> None:
    """Refuse smaller training images of which the network would make other features.

    Raises:
        InputError: it would, or they are not smaller.
    """
    name, options, whole = config.model.name, backbone_options(config, image_shape), image_shape[0]
    if size >= whole:
        raise InputError(
            f"train.small={size}: images have {whole}×{whole}: give less, or null for these"
        )
    try:
        with torch.device("meta"):
            few, all_ = (
                create_model(name, **options | {"image_size": side}).dim for side in (size, whole)
            )
    except ValueError as error:
        raise InputError(f"train.small={size}: {error}") from None
    if few != all_:
        raise InputError(
            f"train.small={size}: {name} makes {few} features of such images and {all_} of "
            f"{whole}×{whole}: choose a size with as many, such as 20 for omniglot-net at 28×28"
        )


def settled_outputs(config: Config, classes: int) -> int | None:
    """Return `model.outputs`: where one classifier is trained, one for each training class.

    Raises:
        InputError: another number was asked for.
    """
    outputs = config.model.outputs
    if config.method not in PRETRAINED:
        return outputs
    if outputs not in (None, classes):
        raise InputError(
            f"model.outputs={outputs}: method={config.method} has one for each of the {classes} "
            "classes of the split 'train', rotated copies included: leave it null"
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
