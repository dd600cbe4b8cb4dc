"""The state of a training: how it is built from a configuration, saved and restored."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, final

import torch

from bilevel_apps.build import episode_sampler, make_task, model_tensors
from bilevel_apps.checkpoint import Checkpoint, load_checkpoint
from bilevel_apps.config import Config, flatten
from bilevel_apps.errors import InputError
from bilevel_apps.hardware import choose_precision, set_threads
from bilevel_apps.meta_task import HyperRepresentation, MetaTask
from bilevel_apps.processes import ALONE, Processes
from bilevel_apps.report import warn
from bilevel_apps.run_folder import RunFolder
from bilevel_data import EpisodeSampler, Store

__all__ = ["Training", "prepare", "resolve", "resumable"]

# What may differ when a run is resumed: hashes tell the images, and the rest costs a warning.
FREE = ("data", "device", "threads")


@final
@dataclass
class Training:
    """A run in progress: what a checkpoint saves, and what is made anew from the configuration.

    Of the rest, `signals` are those that this process has received, and `stop` says whether any of
    the processes had received one at the last hyper-iteration.
    """

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
    processes: Processes = ALONE
    signals: list[int] = field(default_factory=list)
    stop: bool = False

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


def resolve(config: Config, store: Store, device: torch.device, processes: Processes) -> Config:
    """Settle what the configuration leaves open, so that the saved one says what was run."""
    threads = set_threads(config.threads, sharers=processes.local_size)
    rotations = config.episode.rotations
    if rotations is None:
        rotations = store.manifest.rotations_are_classes
    return config.model_copy(
        update={
            # Each process's part of the cores is not what another number of them would take.
            "threads": threads if processes.size == 1 else config.threads,
            "precision": choose_precision(config.precision, device),
            "data": str(store.path.resolve()),
            "episode": config.episode.model_copy(update={"rotations": rotations}),
        }
    )


def prepare(
    config: Config, folder: RunFolder, store: Store, device: torch.device, processes: Processes
) -> Training:
    """Build everything that can be refused before anything is written."""
    episode, training, rotations = config.episode, config.train, bool(config.episode.rotations)
    train_episodes = episode_sampler(
        store,
        "train",
        {
            "way": training.way or episode.way,
            "shot": training.shot or episode.shot,
            "query": training.query or episode.query,
        },
        keys="train.way, train.shot or train.query; where null, those of episode",
        seed=config.seed,
        rotations=rotations,
    )
    val_episodes = episode_sampler(
        store,
        "val",
        {"way": episode.way, "shot": episode.shot, "query": episode.query},
        keys="episode.way, episode.shot or episode.query",
        seed=config.seed,
        rotations=rotations,
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
            "processes": processes.size,
            "device": str(device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "bilevel": version("bilevel-apps"),
            "data": {name: info.sha256 for name, info in store.manifest.splits.items()},
        },
        processes=processes,
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


def resumable(folder: RunFolder, training: Training) -> Checkpoint:
    """Return the checkpoint to continue from, or refuse to continue it as another run."""
    checkpoint = load_checkpoint(folder.last)
    before = {"processes": 1} | checkpoint.record["environment"]
    now = training.environment
    if before["data"] != now["data"]:
        raise InputError(
            f"{training.config.data}: its images are not those that the run began with: give the "
            "same store, or choose another --out"
        )
    given = training.config.flat()
    for key, value in flatten(checkpoint.record["config"]).items():
        if key not in FREE and given[key] != value:
            raise InputError(
                f"{folder.config}: {key} is {given[key]}, but the run began with {value}: "
                "restore it, or choose another --out"
            )
    changed = [key for key in now if key != "data" and before.get(key) != now[key]]
    if changed:
        what = ", ".join(f"{key} {before.get(key)} → {now[key]}" for key in changed)
        warn(f"resuming with {what}: the result will not be the same to the last bit")
    return checkpoint
