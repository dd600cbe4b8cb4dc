"""A run as MLflow recorded it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from bilevel_apps.compare.database import client_of
from bilevel_apps.config import Config, parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.pretrained import PREFIX, pretrained_checkpoint
from bilevel_apps.system.moved import moved
from bilevel_apps.tracking.address import database_file
from bilevel_apps.tracking.run import CURVE, FOLDER_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["TrackedRun", "pretrained_run", "read_run", "read_runs", "untracked_run"]

PAGE = 500
ACCURACY, INTERVAL = "accuracy", "ci95"
BEST = "val/best_accuracy"


@final
@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What is known of a run.

    Attributes:
        id: in MLflow; empty for a run that was not tracked.
        name: that of its folder, when it began, or `pretrained:TAG`.
        experiment: by name.
        status: MLflow's, such as FINISHED.
        params: by key, as MLflow has them: text.
        metrics: the last value of each; not the curves over T.
        intervals: half the 95 % interval of those metrics that have one.
        step: of the last value of any metric.
        minutes: from the start to the end, or until now.
        folder: on this machine, if it still is where the record says, or `pretrained:TAG`.
    """

    id: str
    name: str
    experiment: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    minutes: float | None = None
    folder: Path | None = None


def read_runs(uri: str, experiment: str | None = None) -> list[TrackedRun]:
    """Return the runs of one experiment, or of all, the latest first.

    Raises:
        InputError: no such experiment, or nothing answers at the address.
    """
    client = client_of(uri)
    names = {e.experiment_id: e.name for e in client.search_experiments()}
    chosen = [key for key, name in names.items() if experiment in (None, name)]
    if not chosen:
        raise InputError(
            f"`experiment`={experiment}: no such experiment at {uri}: choose one that it has: "
            f"{', '.join(sorted(names.values()))}"
        )
    return [
        _tracked(client, run, names[run.info.experiment_id], _folder(run, uri))
        for run in _search(client, chosen)
    ]


def read_run(uri: str, run_id: str, folder: Path) -> TrackedRun:
    """Return one run, that of a folder.

    Raises:
        InputError: MLflow does not have it.
    """
    from mlflow.exceptions import MlflowException

    client = client_of(uri)
    try:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id).name
    except MlflowException:
        raise InputError(
            f"{folder}: {uri} has no run {run_id}, where it was tracked: give the `uri` of the "
            "database that has it"
        ) from None
    return _tracked(client, run, experiment, folder)


def untracked_run(folder: Path) -> TrackedRun:
    """Return what the folder of a run that was not tracked tells.

    Raises:
        InputError: it holds no run.
    """
    config = RunFolder(folder).load_config()
    return _untracked(folder.resolve().name, "not tracked", config, folder)


def pretrained_run(tag: str) -> TrackedRun:
    """Return what is known of the run whose weights come with the package as `pretrained:TAG`.

    Raises:
        InputError: no such tag, or its files are damaged.
    """
    checkpoint, _steps = pretrained_checkpoint(tag)
    name = f"{PREFIX}{tag}"
    config = parse_config(checkpoint.record["config"], name)
    return _untracked(name, "pretrained", config, Path(name))


def _untracked(name: str, status: str, config: Config, folder: Path) -> TrackedRun:
    params = {key: str(value) for key, value in config.flat().items()}
    return TrackedRun(id="", name=name, experiment="", status=status, params=params, folder=folder)


def _search(client: MlflowClient, experiments: list[str]) -> Iterator[Any]:
    order, token = ["attributes.start_time DESC"], None
    while True:
        page = client.search_runs(experiments, max_results=PAGE, order_by=order, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _tracked(client: MlflowClient, run: Any, experiment: str, folder: Path | None) -> TrackedRun:
    info = run.info
    metrics = {key: v for key, v in run.data.metrics.items() if f"/{CURVE}/" not in key}
    end = info.end_time or 1000 * time.time()
    return TrackedRun(
        id=info.run_id,
        name=info.run_name,
        experiment=experiment,
        status=info.status,
        params=dict(run.data.params),
        metrics={key: value for key, value in metrics.items() if not key.endswith(INTERVAL)},
        intervals=_intervals(metrics),
        step=_last_step(client, info.run_id, metrics),
        minutes=(end - info.start_time) / 60_000,
        folder=folder,
    )


def _intervals(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return, for `a/accuracy`, the value of `a/ci95`."""
    return {
        key: metrics[other]
        for key in metrics
        if key.endswith(ACCURACY) and (other := key.removesuffix(ACCURACY) + INTERVAL) in metrics
    }


def _last_step(client: MlflowClient, run_id: str, metrics: Mapping[str, float]) -> int | None:
    """Return the last hyper-iteration that was logged."""
    steps = [
        client.get_metric_history(run_id, key)[-1].step
        for key in ("train/loss", "val/accuracy")
        if key in metrics
    ]
    return max(steps, default=None)


def _folder(run: Any, uri: str) -> Path | None:
    """Return the folder that a record names, unless it is gone or holds another run now.

    One that was moved along with the database is found.
    """
    name, database = run.data.tags.get(FOLDER_TAG), database_file(uri)
    if not name:
        return None

    def fits(path: Path) -> bool:
        return bool(RunFolder(path).load_tracking().get("run_id") == run.info.run_id)

    near = Path(name) if database is None else database.resolve().parent
    return moved(Path(name), near, fits)
