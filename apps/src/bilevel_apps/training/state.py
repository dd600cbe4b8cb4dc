"""The state of a training: what its checkpoint saves and restores, and what its log averages."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast, final

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import part_of
from bilevel_apps.runs.checkpoint import Checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.record import Ending, Environment, RunRecord
from bilevel_apps.system.processes import ALONE, Processes
from bilevel_apps.training.data_parallel import Shard
from bilevel_apps.training.optimizer import load_optimizer, optimizer_tensors
from bilevel_apps.training.stopping import Stopwatch, finished, out_of_patience
from bilevel_data import EpisodeSampler, MixedSampler, Preprocessing, VariedSampler
from bilevel_data.episodes.augmentation import Augmented
from bilevel_data.episodes.loader import BatchSampler
from bilevel_data.episodes.smaller import SmallerAtFirst
from bilevel_meta.learner import Learner

__all__ = ["Meter", "Training"]


@final
@dataclass
class Meter:
    """Averages of what hyper-iterations report, and their speed."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    episodes: int = 0
    since: float = field(default_factory=time.monotonic)
    shown: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, float], episodes: int) -> None:
        """Take in one hyper-iteration."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1
        self.episodes += episodes
        self.shown = values

    def take(self) -> dict[str, float]:
        """Return the averages and begin anew."""
        now = time.monotonic()
        averages = {key: value / self.count for key, value in self.sums.items()}
        averages["speed/episodes_per_second"] = self.episodes / max(1e-9, now - self.since)
        self.sums, self.count, self.episodes, self.since = {}, 0, 0, now
        return averages

    def note(self, best_accuracy: float) -> str:
        """Return a few words for the progress bar."""
        text = f"loss {self.shown['train/loss']:.3f}"
        return text if best_accuracy < 0 else f"{text}, best validation {100 * best_accuracy:.1f} %"


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
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    train_episodes: EpisodeSampler | VariedSampler | MixedSampler
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
        return self.learner if self.average is None else cast("Learner", self.average.module)

    def batches(self) -> BatchSampler:
        """Return what makes this process's part of the meta-batches."""
        whole: BatchSampler = self.train_episodes
        if self.config.train.augment:
            changes = frozenset(self.config.train.augment)
            whole = Augmented(whole=whole, changes=changes, seed=self.config.seed)
        if self.config.train.small:
            first = self.config.train.steps // 2 * self.config.train.meta_batch
            whole = SmallerAtFirst(whole=whole, size=self.config.train.small, episodes=first)
        alone = self.processes.size == 1
        return whole if alone else Shard(whole=whole, processes=self.processes)

    def checkpoint(self) -> Checkpoint:
        """Return all that a resume needs."""
        limited = self.config.train.minutes is not None
        parts = {
            "model": self.learner.state_dict(),
            "average": {} if self.average is None else self.average.module.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        height, width, channels = self.val_episodes.split.images.shape[1:]
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
                self.average.module.load_state_dict(part_of(tensors, "average"))
                self.average.n_averaged.fill_(record.step)
            load_optimizer(self.optimizer, part_of(tensors, "optimizer"))
        except (RuntimeError, ValueError) as error:
            reason = textwrap.shorten(str(error), 300, placeholder=" …")
            raise InputError(
                f"{self.folder.last}: its tensors are not those of its configuration ({reason}): "
                "begin anew in another `out`"
            ) from None
        train = self.config.train
        self.step, self.ended = record.step, record.ended
        if self.ended in (Ending.MINUTES, Ending.STEPS):  # there may be more of them now
            used_up = finished(train, record.step, record.seconds or 0.0)
            self.ended = used_up or out_of_patience(train, record.step, record.best_step)
        self.best_accuracy, self.best_ci95 = record.best_accuracy, record.best_ci95
        self.best_step = record.best_step
        self.clock.before = record.seconds or 0.0
        self.meter = Meter(sums=dict(record.sums), count=record.count)
