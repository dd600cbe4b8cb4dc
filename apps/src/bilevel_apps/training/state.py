"""The state of a training: how it is built from a configuration, saved and restored."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import cast, final

import torch
from torch import Tensor

from bilevel_apps.config import Config
from bilevel_apps.config.resume import may_change
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import (
    check_features,
    check_size,
    episode_sampler,
    make_learner,
    part_of,
    settled_outputs,
    training_sampler,
)
from bilevel_apps.runs.checkpoint import Checkpoint, load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.record import Ending, Environment, RunRecord, read_record
from bilevel_apps.runs.weights import load_backbone
from bilevel_apps.system.hardware import choose_precision, set_threads
from bilevel_apps.system.processes import ALONE, Processes
from bilevel_apps.system.terminal import warn
from bilevel_apps.training.data_parallel import Shard
from bilevel_apps.training.meter import Meter
from bilevel_apps.training.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from bilevel_apps.training.stopping import Stopwatch, finished, stale
from bilevel_apps.training.weight_average import WeightAverage, weight_average
from bilevel_data import EpisodeSampler, Preprocessing, Store, VariedSampler
from bilevel_data.episodes.augmentation import Augmented
from bilevel_data.episodes.loader import BatchSampler
from bilevel_data.episodes.smaller import SmallerAtFirst
from bilevel_meta.learner import Learner

__all__ = ["Training", "prepare", "resolve", "resumable"]

# What may differ when a run is resumed, beside its length: hashes tell the images, and another
# device or number of threads costs a warning.
FREE = ("data", "device", "threads", "tracking.uri")


@final
@dataclass
class Training:
    """A run in progress: what a checkpoint saves, and what is made anew from the configuration.

    Of the rest, `signals` are those that this process has received, and `stop` says whether the
    run was asked to stop: by a signal to one of the processes, or by the first one's clock.
    """

    config: Config
    folder: RunFolder
    learner: Learner
    average: WeightAverage | None
    optimizer: torch.optim.Optimizer
    train_episodes: EpisodeSampler | VariedSampler
    val_episodes: EpisodeSampler
    device: torch.device
    preprocessing: Preprocessing
    features: str | None
    environment: Environment
    step: int = 0
    best_accuracy: float = -1.0
    best_ci95: float | None = None
    best_step: int = 0
    ended: Ending | None = None
    clock: Stopwatch = field(default_factory=Stopwatch)
    meter: Meter = field(default_factory=Meter)
    processes: Processes = ALONE
    signals: list[int] = field(default_factory=list)
    stop: bool = False

    @property
    def scored(self) -> Learner:
        """The weights that are validated: their average, if there is one."""
        return self.learner if self.average is None else self.average.learner

    def batches(self) -> BatchSampler:
        """Return what makes this process's part of the meta-batches."""
        whole: BatchSampler = self.train_episodes
        if self.config.train.augment:
            changes = frozenset(self.config.train.augment)
            whole = Augmented(whole=whole, changes=changes, seed=self.config.seed)
        if self.config.train.small:
            first = self.config.train.steps // 2 * self.config.train.meta_batch
            whole = SmallerAtFirst(whole=whole, size=self.config.train.small, episodes=first)
        return Shard(whole=whole, processes=self.processes)

    def checkpoint(self) -> Checkpoint:
        """Return all that a resume needs."""
        limited = self.config.train.minutes is not None
        parts = {
            "model": self.learner.state_dict(),
            "average": {} if self.average is None else self.average.state(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        height, width, channels = self.train_episodes.split.images.shape[1:]
        record = RunRecord(
            step=self.step,
            best_accuracy=self.best_accuracy,
            best_ci95=self.best_ci95,
            best_step=self.best_step,
            ended=self.ended,
            seconds=self.clock.seconds() if limited else None,
            sums=self.meter.sums,
            count=self.meter.count,
            config=self.config,
            image_shape=(height, width, channels),
            preprocessing=self.preprocessing.as_dict(),
            features=self.features,
            environment=self.environment,
        )
        return Checkpoint(
            tensors={f"{part}.{k}": v for part, held in parts.items() for k, v in held.items()},
            record=record.as_json(),
        )

    def restore(self, tensors: Mapping[str, Tensor], record: RunRecord) -> None:
        """Go back to where a checkpoint was taken.

        Raises:
            InputError: the tensors are not those of this configuration.
        """
        try:
            self.learner.load_state_dict(part_of(tensors, "model"))
            if self.average is not None:
                self.average.load(part_of(tensors, "average"))
            load_optimizer(self.optimizer, part_of(tensors, "optimizer"))
        except (RuntimeError, ValueError) as error:
            reason = textwrap.shorten(str(error), 300, placeholder=" …")
            raise InputError(
                f"{self.folder.last}: its tensors are not those of its configuration ({reason}): "
                "begin anew in another --out"
            ) from None
        train = self.config.train
        self.step, self.ended = record.step, record.ended
        if self.ended in (Ending.MINUTES, Ending.STEPS):  # there may be more of them now
            used_up = finished(train, record.step, record.seconds or 0.0)
            self.ended = used_up or stale(train, record.step, record.best_step)
        self.best_accuracy, self.best_ci95 = record.best_accuracy, record.best_ci95
        self.best_step = record.best_step
        self.clock.before = record.seconds or 0.0
        self.meter = Meter(sums=dict(record.sums), count=record.count)


def resolve(config: Config, store: Store, device: torch.device, processes: Processes) -> Config:
    """Settle what the configuration leaves open, so that the saved one says what was run."""
    threads = set_threads(config.threads, sharers=processes.local_size)
    rotations = config.episode.rotations
    if rotations is None:
        rotations = store.manifest.rotations_are_classes
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
            "episode": config.episode.model_copy(update={"rotations": rotations}),
            "model": config.model.model_copy(update={"outputs": outputs}),
        }
    )


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
    train_episodes = training_sampler(store, config)
    val_episodes = episode_sampler(
        store,
        "val",
        {"way": episode.way, "shot": episode.shot, "query": episode.query},
        keys="episode.way, episode.shot or episode.query",
        seed=config.seed,
        rotations=bool(episode.rotations),
    )
    image_shape = train_episodes.split.images.shape[1:]
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
            "same store, or choose another --out"
        )
    given, free = training.config.flat(), (*FREE, *may_change(training.config.train))
    for key, value in record.config.flat().items():
        if key not in free and given.get(key) != value:
            raise InputError(
                f"{folder.config}: {key} is {given.get(key)}, but the run began with {value}: "
                "restore it, or choose another --out"
            )
    if training.config.train.steps < record.step:
        raise InputError(
            f"{folder.last}: has {record.step} hyper-iterations behind it, and train.steps is "
            f"{training.config.train.steps}: give as many or more, or choose another --out"
        )
    past, present = before.model_dump(exclude={"data"}), now.model_dump(exclude={"data"})
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
