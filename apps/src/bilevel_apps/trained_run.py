"""A run that can be used: its best weights, and the configuration that they were trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from bilevel_apps.build import episode_sampler, make_task, model_tensors, store_of
from bilevel_apps.checkpoint import load_checkpoint
from bilevel_apps.config import Config, parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.hardware import choose_device, set_threads
from bilevel_apps.meta_task import MetaTask
from bilevel_apps.run_folder import RunFolder
from bilevel_data import EpisodeSampler, Store

__all__ = ["TrainedRun", "load_run"]


@final
@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished or interrupted run.

    Attributes:
        config: what was run.
        task: the representation and its inner problem.
        path: the checkpoint.
        sha256: of the checkpoint's file, as it was when it was read.
        image_shape: (height, width, channels) of the images.
        device: where the weights are.
    """

    config: Config
    task: MetaTask
    path: Path
    sha256: str
    image_shape: tuple[int, ...]
    device: torch.device

    def store(self, path: Path | None) -> Store:
        """Open another store, or the one that the run was trained on."""
        return store_of(path or self.config.data)

    def sampler(
        self,
        store: Store,
        split: str,
        *,
        seed: int,
        rotations: bool,
        way: int | None = None,
        shot: int | None = None,
        query: int | None = None,
    ) -> EpisodeSampler:
        """Return episodes of the kind that the run was trained for, unless told otherwise.

        Raises:
            InputError: the images are of another size, or too few.
        """
        found = store.manifest.splits[split].image_shape if split in store.splits else None
        if found not in (None, self.image_shape):
            raise InputError(
                f"{store.path}: images of (height, width, channels) {found}, but the run was "
                f"trained on {self.image_shape}: give a store made the same way"
            )
        episode = self.config.episode
        spec = {
            "way": way or episode.way,
            "shot": shot or episode.shot,
            "query": query or episode.query,
        }
        return episode_sampler(
            store,
            split,
            spec,
            keys="--way, --shot, --query or --split",
            seed=seed,
            rotations=rotations,
        )


def load_run(folder: Path, device: str) -> TrainedRun:
    """Load a run's best checkpoint, or its last where none has validated yet.

    The configuration is the one in the checkpoint: config.yaml beside it is for people to read.

    Raises:
        InputError: the folder holds no usable run.
    """
    run = RunFolder(folder)
    run.load_config()  # says what is wrong where the folder is no run's
    path = run.best if run.best.exists() else run.last
    if not path.exists():
        raise InputError(f"{folder}: no checkpoint yet: train it first, or go on with --resume")
    checkpoint = load_checkpoint(path)
    config = parse_config(checkpoint.record["config"], str(path))
    image_shape = tuple(checkpoint.record["image_shape"])
    chosen = choose_device(device)
    set_threads(config.threads)
    task = make_task(config, image_shape, chosen)
    task.model.load_state_dict(model_tensors(checkpoint.tensors))
    return TrainedRun(
        config=config,
        task=task,
        path=path,
        sha256=str(checkpoint.file_sha256),
        image_shape=image_shape,
        device=chosen,
    )
