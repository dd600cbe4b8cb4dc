"""What `bilevel-data features` does: every picture of a store through a frozen backbone, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast, final

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.errors import InputError
from bilevel_apps.runs.load import differently_prepared, load_trained
from bilevel_apps.runs.pretrained import pretrained_tag
from bilevel_apps.runs.weights import backbone_sha256, load_backbone
from bilevel_apps.scoring.score import BATCH_PIXELS
from bilevel_apps.system.hardware import choose_device
from bilevel_apps.system.terminal import warn
from bilevel_data import (
    Features,
    ImageSplit,
    Lazy,
    Manifest,
    SourceData,
    SourceSplit,
    Store,
    open_store,
    write_store,
)
from bilevel_meta.learner import HeadLearner
from bilevel_models import Encoder, Normalization, as_images, create_model, keep_freed_memory

__all__ = ["FeaturesRequest", "write_features"]


@final
@dataclass(frozen=True, kw_only=True)
class FeaturesRequest:
    """What to encode, with what.

    Attributes:
        store: of pictures.
        weights: the folder of a run, a checkpoint, `pretrained:TAG`, or with `model` a safetensors
            file in its library's names.
        out: the store of features to write.
        model: the network, where the weights do not say it; None takes the run's.
        device: `auto`, `cpu` or `cuda`.
        overwrite: replace a store that is there.
    """

    store: Path
    weights: Path
    out: Path
    model: str | None = None
    device: str = "auto"
    overwrite: bool = False


def write_features(
    request: FeaturesRequest, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Write the features of a store's pictures as a store of their own; returns its manifest.

    Features are those of running averages, as an evaluation has them, and not divided by their
    length: whoever uses them does that. Rotated copies are left out.

    Raises:
        InputError: the weights cannot be used, are of another network or for other images, or their
            features depend on the episode.
        bilevel_data.DataError: the store cannot be used, or `out` not be written.

    Cost: a forward pass over the pictures; one split in memory at a time.
    """
    store = open_store(request.store)
    if store.manifest.features is not None:
        raise InputError(f"{store.path}: holds features already: give the store of the pictures")
    device = choose_device(request.device)
    keep_freed_memory()
    name, encoder = _of_model(request, store) if request.model else _of_run(request, store)
    encoder.backbone.to(device)
    about = Features(
        backbone=name,
        weights=_described(request.weights),
        weights_sha256=backbone_sha256(encoder.backbone),
        images={split: info.sha256 for split, info in store.manifest.splits.items()},
    )
    manifest = store.manifest
    source = SourceData(
        name=manifest.name,
        licence=manifest.licence,
        source=manifest.source,
        preprocessing=manifest.preprocessing,
        rotations_are_classes=False,
        splits=tuple(_split(store, split, encoder, device) for split in store.splits),
        left_out=manifest.left_out,
        features=about,
    )
    return write_store(request.out, source, overwrite=request.overwrite, progress=progress)


def _of_run(request: FeaturesRequest, store: Store) -> tuple[str, Encoder]:
    """Return the name and the encoder of a run's backbone, as its evaluation uses it."""
    run = load_trained(request.weights, request.device)
    run.require_pictures("bilevel-data features")
    if not isinstance(run.learner, HeadLearner):
        raise InputError(
            f"{run.path}: method={run.config.method} moves the whole network, which has no "
            f"features of its own: add `model`={run.config.model.name} to take its weights"
        )
    if not run.learner.normalization.by_averages:
        raise InputError(
            f"{run.path}: norm={run.learner.normalization.value} makes a picture's features depend "
            f"on its episode: add `model`={run.config.model.name} to take its weights with running "
            "averages, or give a run with norm ghost or batch"
        )
    run.require_shape(store, store.image_shape)
    if line := differently_prepared(run, store, store.load(store.splits[-1])):
        warn(line)
    return run.config.model.name, replace(run.learner.encoder, unit_length=False)


def _of_model(request: FeaturesRequest, store: Store) -> tuple[str, Encoder]:
    """Return the name and the encoder of a network by name, with weights of a file or a run."""
    name = cast("str", request.model)
    height, _, channels = store.image_shape
    try:
        backbone = create_model(name, channels=channels, image_size=height)
    except ValueError as error:
        raise InputError(f"`model`={name}: {error}") from None
    load_backbone(backbone, str(request.weights))
    return name, Encoder(backbone=backbone, normalization=Normalization.GHOST)


def _described(weights: Path) -> str:
    """Return weights' name without a path of this machine."""
    tag = pretrained_tag(weights)
    return weights.resolve().name if tag is None else str(weights)


def _split(store: Store, name: str, encoder: Encoder, device: torch.device) -> SourceSplit:
    """Return a split of features, made class by class when they are asked for."""
    info = store.manifest.splits[name]
    return SourceSplit(
        name=name,
        class_names=info.class_names,
        class_sizes=store.class_sizes(name),
        image_shape=(1, 1, cast("int", encoder.backbone.dim)),
        images=Lazy(make=partial(_encoded, store, name, encoder, device)),
    )


def _encoded(
    store: Store, name: str, encoder: Encoder, device: torch.device
) -> Iterator[NDArray[np.float32]]:
    split = store.load(name)
    for c in range(split.num_classes):
        yield _of_class(split, c, encoder, device)


def _of_class(
    split: ImageSplit, c: int, encoder: Encoder, device: torch.device
) -> NDArray[np.float32]:
    """Return the features (n, 1, 1, dim) of a class."""
    images = split.images[split.offsets[c] : split.offsets[c + 1]]
    size = max(1, BATCH_PIXELS // math.prod(images.shape[1:]))
    parts = []
    for first in range(0, len(images), size):
        pixels = np.array(images[first : first + size])  # torch warns of what is read-only
        with torch.no_grad():
            (h,) = encoder(as_images(pixels, device)[None], training=False)
        parts.append(h[0].float().cpu().numpy())
    return np.concatenate(parts)[:, None, None, :]
