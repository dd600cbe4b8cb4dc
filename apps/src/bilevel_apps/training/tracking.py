"""The record of a training in MLflow."""

from __future__ import annotations

from bilevel_apps.system.terminal import warn
from bilevel_apps.tracking.run import FOLDER_TAG, begin_run
from bilevel_apps.tracking.tracker import Tracker
from bilevel_apps.training.state import Training
from bilevel_data import Store

__all__ = ["start_tracking"]


def start_tracking(training: Training, store: Store, *, resume: bool) -> Tracker:
    """Begin the record of a training, or continue that of its folder, in the first process."""
    config, folder = training.config, training.folder
    if not (config.tracking.enabled and training.processes.first):
        return Tracker(warn=warn)
    tracker, _target = begin_run(config.tracking, folder, store, resume=resume)
    tags = {FOLDER_TAG: str(folder.path.resolve())}
    tags |= {"data.name": store.manifest.name, "data.file": str(config.data)}
    tags |= {f"data.sha256.{k}": v for k, v in training.environment.data.items()}
    mix = training.environment.mix
    tags |= {f"data.mix.{number}": f"{w:g} of {k}" for number, (k, w) in enumerate(mix.items(), 1)}
    versions = training.environment.model_dump(include={"python", "torch", "bilevel"})
    tags |= {f"version.{k}": v for k, v in versions.items()}
    tracker.describe(config.flat(), tags)
    tracker.artifact(folder.config)
    return tracker
