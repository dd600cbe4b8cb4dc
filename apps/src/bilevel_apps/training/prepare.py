"""How a training is built from a configuration, and what a resume is taken for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch

from bilevel_apps.config import Config
from bilevel_apps.config.resume import may_change
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import (
    check_features,
    check_size,
    episode_sampler,
    make_learner,
    settled_outputs,
    store_of,
)
from bilevel_apps.runs.checkpoint import Checkpoint, load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.mixture import mixed_sampler, mixed_stores
from bilevel_apps.runs.record import Environment, RunRecord, read_record
from bilevel_apps.runs.weights import load_backbone
from bilevel_apps.system.hardware import choose_precision, set_threads
from bilevel_apps.system.processes import Processes
from bilevel_apps.system.terminal import warn
from bilevel_apps.training.optimizer import make_optimizer, weight_average
from bilevel_apps.training.state import Training
from bilevel_data import Store

__all__ = ["prepare", "resolve", "resumable"]

# What may differ when a run is resumed, beside its length: hashes tell the images, and another
# device or number of threads costs a warning.
FREE = ("data", "device", "threads", "tracking.uri", "train.mix")


def resolve(config: Config, store: Store, device: torch.device, processes: Processes) -> Config:
    """Settle what the configuration leaves open, so that the saved one says what was run.

    Raises:
        InputError: the stores of a mixture disagree about rotations.
        bilevel_data.DataError: one of them is missing or unusable.
    """
    threads = set_threads(config.threads, sharers=processes.local_size)
    rotations = _rotations(config, store)
    outputs = config.model.outputs
    if "train" in store.splits:  # what has none is refused with the episodes
        classes = len(store.manifest.splits["train"].class_names) * (4 if rotations else 1)
        outputs = settled_outputs(config, classes)
    return config.model_copy(
        update={
            # Each process's part of the cores is not what another number of them would take.
            "threads": threads if processes.size == 1 else config.threads,
            "precision": choose_precision(config.precision, device),
            "data": str(store.path.resolve()),
            "train": config.train.model_copy(update={"mix": _absolute(config.train.mix)}),
            "episode": config.episode.model_copy(update={"rotations": rotations}),
            "model": config.model.model_copy(update={"outputs": outputs}),
        }
    )


def _rotations(config: Config, store: Store) -> bool:
    """Say whether rotated copies are classes: as told, or else as all stores say."""
    if config.episode.rotations is not None:
        return config.episode.rotations
    own = store.manifest.rotations_are_classes
    for other in map(store_of, config.train.mix):
        if other.manifest.rotations_are_classes != own:
            raise InputError(
                f"{other.path}: counts rotated copies as classes, or not, otherwise than "
                f"{store.path}: set episode.rotations to true or false for both"
            )
    return own


def _absolute(mix: Mapping[str, float]) -> dict[str, float]:
    return {str(Path(path).resolve()): weight for path, weight in mix.items()}


def prepare(
    config: Config, folder: RunFolder, store: Store, device: torch.device, processes: Processes
) -> Training:
    """Build everything that can be refused before anything is written.

    Raises:
        InputError: the model, the episodes or the meta-batch do not fit the data or one another.
        bilevel_data.DataError: the store is damaged.
    """
    _check_parts(config, processes)
    episode, training = config.episode, config.train
    others = mixed_stores(store, config)
    train_episodes = mixed_sampler(store, config, others)
    val_episodes = episode_sampler(
        store,
        "val",
        {"way": episode.way, "shot": episode.shot, "query": episode.query},
        keys="episode.way, episode.shot or episode.query",
        seed=config.seed,
        rotations=bool(episode.rotations),
    )
    image_shape = val_episodes.split.images.shape[1:]
    learner = make_learner(config, image_shape, device)
    check_features(config, store, learner)
    if training.small is not None:
        check_size(config, image_shape, training.small)
    if config.model.weights is not None and not folder.last.exists():
        load_backbone(cast("torch.nn.Module", learner.backbone), config.model.weights)
    average, features = training.average, store.manifest.features
    return Training(
        config=config,
        folder=folder,
        learner=learner,
        average=None if average is None else weight_average(learner, average),
        optimizer=make_optimizer(training, learner),
        train_episodes=train_episodes,
        val_episodes=val_episodes,
        device=device,
        preprocessing=store.manifest.preprocessing,
        features=None if features is None else features.weights_sha256,
        environment=Environment(
            threads=torch.get_num_threads(),
            processes=processes.size,
            device=str(device),
            python=platform.python_version(),
            torch=str(torch.__version__),
            bilevel=version("bilevel-apps"),
            data={name: info.sha256 for name, info in store.manifest.splits.items()},
            mix={other.sha256: other.weight for other in others},
        ),
        processes=processes,
    )


def _check_parts(config: Config, processes: Processes) -> None:
    """Refuse a meta-batch that cannot pass in parts."""
    parts, meta_batch = config.train.accumulate, config.train.meta_batch
    if parts > 1 and config.model.norm == "batch":
        raise InputError(
            f"train.accumulate={parts}: with model.norm=batch the statistics are those of the "
            "whole meta-batch, which then has to pass at once: set train.accumulate=1, or "
            "model.norm to ghost, support or episode"
        )
    if meta_batch % processes.size == 0 and (meta_batch // processes.size) % parts:
        each = f" in each of {processes.size} processes" if processes.size > 1 else ""
        raise InputError(
            f"train.accumulate={parts}: {meta_batch // processes.size} episodes{each} do not "
            "divide into as many equal parts: choose a divisor, or another train.meta_batch"
        )


def resumable(folder: RunFolder, training: Training) -> tuple[Checkpoint, RunRecord]:
    """Return the checkpoint to continue from, or refuse to continue it as another run.

    Raises:
        InputError: it is damaged, or of another configuration or other images.
    """
    checkpoint = load_checkpoint(folder.last)
    record = read_record(checkpoint, folder.last)
    before, now = record.environment, training.environment
    if before.data != now.data:
        raise InputError(
            f"{training.config.data}: its images are not those that the run began with: give the "
            "same store, or choose another `out`"
        )
    if before.mix != now.mix:
        raise InputError(
            f"{folder.config}: train.mix={training.config.train.mix}: not the images or weights "
            "that the run began with: give the same stores, or choose another `out`"
        )
    given, free = training.config.flat(), (*FREE, *may_change(training.config.train))
    for key, value in record.config.flat().items():
        if key not in free and given.get(key) != value:
            raise InputError(
                f"{folder.config}: {key} is {given.get(key)}, but the run began with {value}: "
                "restore it, or choose another `out`"
            )
    if training.config.train.steps < record.step:
        raise InputError(
            f"{folder.last}: has {record.step} hyper-iterations behind it, and train.steps is "
            f"{training.config.train.steps}: give as many or more, or choose another `out`"
        )
    past, present = (e.model_dump(exclude={"data", "mix"}) for e in (before, now))
    changed = [key for key in present if past.get(key) != present[key]]
    if changed:
        what = ", ".join(f"{key} {past.get(key)} → {present[key]}" for key in changed)
        warn(f"resuming with {what}: the result will not be the same to the last bit")
    minutes = training.config.train.minutes
    # Without a limit there are none in a checkpoint: equal runs then have equal files.
    if minutes is not None and record.seconds is None:
        warn(
            f"train.minutes={minutes:g} counts from here: what {record.step} hyper-iterations took "
            "without a limit was not recorded"
        )
    return checkpoint, record
