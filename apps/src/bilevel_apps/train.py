"""Meta-training: hyper-iterations with validation, checkpoints, tracking and resumption.

Every hyper-iteration is a function of the weights, the optimiser's state and its own number, so a
run that was killed continues to the same bits at the same number of threads.
"""

from __future__ import annotations

import math
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, final

import torch

from bilevel_apps.build import (
    choose_device,
    choose_precision,
    episode_sampler,
    load_split,
    make_task,
    model_tensors,
    set_threads,
    store_of,
)
from bilevel_apps.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bilevel_apps.config import Config
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.meta_task import HyperRepresentation, MetaTask, to_device
from bilevel_apps.report import progress_bar, say, warn
from bilevel_apps.run_folder import RunFolder
from bilevel_apps.schedules import learning_rate
from bilevel_apps.scoring import Score, score_episodes
from bilevel_apps.tracking import Target, Tracker, default_uri, open_tracker
from bilevel_core import DivergenceError
from bilevel_data import EpisodeLoader, EpisodeSampler, Store

__all__ = ["train"]

STDERR = 2


@final
@dataclass
class Training:
    """A run in progress: what a checkpoint saves, and what is made anew from the configuration."""

    config: Config
    folder: RunFolder
    task: MetaTask
    optimizer: torch.optim.Optimizer
    train_episodes: EpisodeSampler
    val_episodes: EpisodeSampler
    device: torch.device
    environment: dict[str, Any]
    step: int = 0
    best_accuracy: float = -1.0
    best_step: int = 0

    def checkpoint(self) -> Checkpoint:
        """Return all that a resume needs."""
        tensors = {f"model.{k}": v for k, v in self.task.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        record = {
            "step": self.step,
            "best_accuracy": self.best_accuracy,
            "best_step": self.best_step,
            "config": self.config.model_dump(mode="json"),
            "image_shape": list(self.train_episodes.split.images.shape[1:]),
            "environment": self.environment,
        }
        return Checkpoint(tensors=tensors, record=record)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was taken."""
        record, tensors = checkpoint.record, checkpoint.tensors
        self.task.model.load_state_dict(model_tensors(tensors))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, key = rest.split(".")
                state.setdefault(int(index), {})[key] = tensor
        whole = self.optimizer.state_dict() | {"state": state}
        self.optimizer.load_state_dict(whole)
        self.step = record["step"]
        self.best_accuracy = record["best_accuracy"]
        self.best_step = record["best_step"]


def train(config: Config, out: Path, *, resume: bool) -> Score | None:
    """Run, or continue, a training; returns the best validation score of this process.

    Args:
        config: what to run; to continue, the configuration that the folder holds.
        out: the run's folder; made if it is missing.
        resume: continue from the folder's last checkpoint, if it has one.

    Raises:
        InputError: the input cannot be used, or the folder holds a run and `resume` is off.
        RunError: the training failed; the last checkpoint is kept.
        bilevel_data.DataError: the store cannot be used.
    """
    folder = RunFolder(out)
    if folder.began() and not resume:
        raise InputError(f"{out}: holds a run already: add --resume, or choose another --out")
    store = store_of(config.data)
    device = choose_device(config.device)
    config = _resolve(config, store, device)
    training = _prepare(config, folder, store, device)
    with folder.exclusive():
        folder.save_config(config)
        if resume and folder.last.exists():
            training.restore(_resumable(folder, training))
        tracker = _start_tracking(training, store)
        with _closing(tracker):
            return _run(training, tracker)


def _resolve(config: Config, store: Store, device: torch.device) -> Config:
    """Settle what the configuration leaves open, so that the saved one says what was run."""
    rotations = config.episode.rotations
    if rotations is None:
        rotations = store.manifest.rotations_are_classes
    return config.model_copy(
        update={
            "threads": set_threads(config.threads),
            "precision": choose_precision(config.precision, device),
            "data": str(store.path.resolve()),
            "episode": config.episode.model_copy(update={"rotations": rotations}),
        }
    )


def _prepare(config: Config, folder: RunFolder, store: Store, device: torch.device) -> Training:
    """Build everything that can be refused before anything is written."""
    episode, training = config.episode, config.train
    samplers = {
        "train": {
            "way": training.way or episode.way,
            "shot": training.shot or episode.shot,
            "query": training.query or episode.query,
        },
        "val": {"way": episode.way, "shot": episode.shot, "query": episode.query},
    }
    train_episodes, val_episodes = (
        episode_sampler(
            load_split(store, name),
            **sizes,
            seed=config.seed,
            rotations=bool(episode.rotations),
        )
        for name, sizes in samplers.items()
    )
    task = make_task(config, train_episodes.split.images.shape[1:], device)
    return Training(
        config=config,
        folder=folder,
        task=task,
        optimizer=_optimizer(config, task.model),
        train_episodes=train_episodes,
        val_episodes=val_episodes,
        device=device,
        environment={
            "threads": torch.get_num_threads(),
            "device": str(device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "bilevel": version("bilevel-apps"),
            "data": {name: info.sha256 for name, info in store.manifest.splits.items()},
        },
    )


def _optimizer(config: Config, model: HyperRepresentation) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay on the backbone (none: the paper's plain Adam)."""
    scalars = [p for p in (model.log_lr, model.log_scale) if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": list(model.backbone.parameters()), "weight_decay": config.train.weight_decay}
    ]
    if scalars:
        groups.append({"params": scalars, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=config.train.lr)


def _resumable(folder: RunFolder, training: Training) -> Checkpoint:
    checkpoint = load_checkpoint(folder.last)
    before, now = checkpoint.record["environment"], training.environment
    if before["data"] != now["data"]:
        raise InputError(
            f"{training.config.data}: its images are not those that the run began with: give the "
            "same store, or choose another --out"
        )
    changed = [key for key in now if key != "data" and before.get(key) != now[key]]
    if changed:
        what = ", ".join(f"{key} {before.get(key)} → {now[key]}" for key in changed)
        warn(f"resuming with {what}: the result will not be the same to the last bit")
    return checkpoint


def _start_tracking(training: Training, store: Store) -> Tracker:
    config, folder = training.config, training.folder
    if not config.tracking.enabled:
        return open_tracker(None, run_id=None, warn=warn)
    known = folder.load_tracking()
    target = Target(
        uri=config.tracking.uri or known.get("uri") or default_uri(folder.path),
        experiment=config.tracking.experiment or store.manifest.name,
        run_name=folder.path.name,
    )
    tracker = open_tracker(target, run_id=known.get("run_id"), warn=warn)
    if tracker.client is not None:
        folder.save_tracking(target.uri, tracker.run_id)
    tags = {"data.name": store.manifest.name, "data.file": str(config.data)}
    tags |= {f"data.sha256.{k}": v for k, v in training.environment["data"].items()}
    tags |= {f"version.{k}": str(training.environment[k]) for k in ("python", "torch", "bilevel")}
    tracker.describe(config.flat(), tags)
    tracker.artifact(folder.config)
    return tracker


@contextmanager
def _closing(tracker: Tracker) -> Iterator[None]:
    """End the tracked run with the status that the block deserves."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def _run(training: Training, tracker: Tracker) -> Score | None:
    config, steps = training.config, training.config.train.steps
    _announce(training)
    best = None
    meter = Meter()
    loader = EpisodeLoader(
        training.train_episodes,
        meta_batch=config.train.meta_batch,
        first_step=training.step,
        steps=steps - training.step,
    )
    with (
        loader as batches,
        progress_bar("training", steps, training.step) as show,
        _stop_request() as stopping,
    ):
        for batch in batches:
            meter.add(_hyper_iteration(training, batch), config.train.meta_batch)
            step = training.step
            if step % config.tracking.every == 0:
                tracker.metrics(step, meter.take() | _scalars(training))
            show(step, meter.note(training.best_accuracy))
            if step % config.train.validate_every == 0 or step == steps:
                found = _validate(training, tracker)
                best = found or best
            stop = bool(stopping) and step < steps
            if step % config.train.checkpoint_every == 0 or step == steps or stop:
                save_checkpoint(training.folder.last, training.checkpoint())
            if stop:
                say(f"stopped at hyper-iteration {step}; continue with --resume")
                raise KeyboardInterrupt
    tracker.artifact(training.folder.best)
    return best


def _announce(training: Training) -> None:
    config, task = training.config, training.task
    parameters = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    spec = training.train_episodes.spec
    say(
        f"{config.model.name}: {parameters:,} outer parameters, {config.model.norm} normalisation, "
        f"T = {task.steps} inner steps; {config.train.meta_batch} episodes of {spec.way}-way "
        f"{spec.shot}-shot a hyper-iteration; {training.device}, "
        f"{torch.get_num_threads()} threads, {config.precision}"
    )
    if training.step:
        say(f"resuming after hyper-iteration {training.step} of {config.train.steps}")


def _hyper_iteration(training: Training, batch: Any) -> dict[str, float]:
    """Take one outer step; return what happened, for the log."""
    config, model = training.config.train, training.task.model
    lr = learning_rate(config.schedule, config.lr, training.step, config.steps)
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    episodes = to_device(batch, training.train_episodes.spec.way, training.device)
    try:
        outcome = training.task.hypergradient(episodes)
    except DivergenceError as error:
        raise _diverged(training, "after", error) from error
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads))
    if not math.isfinite(norm):  # a step along it would spoil the weights that are saved next
        raise RunError(
            f"after hyper-iteration {training.step}: the gradient of the weights is not finite: "
            f"lower train.lr, or use precision=float32; {_kept(training)}"
        )
    training.optimizer.step()
    training.step += 1
    return {
        "train/loss": outcome.loss,
        "train/accuracy": outcome.accuracy,
        "outer/grad_norm": norm,
        "outer/lr": lr,
    }


def _diverged(training: Training, when: str, error: DivergenceError) -> RunError:
    return RunError(
        f"{when} hyper-iteration {training.step}: {error} (inner.lr or inner.scale, or set "
        f"model.unit_length=true, under a new --out); {_kept(training)}"
    )


def _kept(training: Training) -> str:
    last = training.folder.last
    return f"{last} keeps the last good state" if last.exists() else "there is no checkpoint yet"


def _scalars(training: Training) -> dict[str, float]:
    model = training.task.model
    return {
        "inner/lr": float(model.log_lr.detach().exp()),
        "inner/scale": float(model.log_scale.detach().exp()),
    }


def _validate(training: Training, tracker: Tracker) -> Score | None:
    """Score the validation episodes; keep the checkpoint and return the score if it is the best."""
    try:
        found = score_episodes(
            training.task.accuracies,
            training.val_episodes,
            episodes=training.config.train.validate_episodes,
            device=training.device,
        )
    except DivergenceError as error:
        raise _diverged(training, "validation after", error) from error
    tracker.metrics(training.step, {"val/accuracy": found.accuracy, "val/ci95": found.ci95})
    say(f"hyper-iteration {training.step}: validation accuracy {found}")
    if found.accuracy <= training.best_accuracy:
        return None
    training.best_accuracy, training.best_step = found.accuracy, training.step
    save_checkpoint(training.folder.best, training.checkpoint())
    tracker.metrics(training.step, {"val/best_accuracy": found.accuracy})
    return found


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


@contextmanager
def _stop_request() -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into an entry of the yielded list, for the loop to act on.

    A second one interrupts at once.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        # Not print: the signal may have come in the middle of one, which must not be entered twice.
        with suppress(OSError):
            os.write(STDERR, "finishing this hyper-iteration and saving …\n".encode())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
