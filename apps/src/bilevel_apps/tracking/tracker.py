"""MLflow, kept at arm's length: buffered, and never able to stop a run.

Whatever goes wrong with the tracker costs one warning; training goes on without it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, final

from bilevel_apps.tracking.address import (
    ARTIFACTS,
    database_file,
    sqlite_uri,
    take_artifacts,
    without_stray_folders,
)
from bilevel_data.files.atomic import commit, temporary

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "Target",
    "Tracker",
    "closing",
    "mlflow_client",
    "one_line",
    "open_tracker",
]

FLUSH_SECONDS = 10.0
# What a call may take where a process was told to end, and how often a longer one is asked whether.
STOP_SECONDS, POLL_SECONDS = 2.0, 0.1
CALL_LIMIT = 1000  # metrics that MLflow takes in one call
# MLflow's own: its interface then shows runs and charts, and not traces of language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}


@final
@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a run is recorded: the address of the tracker, the experiment, the run's name."""

    uri: str
    experiment: str
    run_name: str


@final
@dataclass(kw_only=True)
class Tracker:
    """One run of an MLflow experiment; without a client, everything it does is nothing.

    Attributes:
        warn: told once, in one line, when tracking fails.
        client: MLflow's client, or None when tracking is off or has failed.
        run_id: the run's identifier in MLflow.
        hurried: says that the process was told to end, and waits `STOP_SECONDS` for an answer at
            most; None leaves it to MLflow how long.
    """

    warn: Callable[[str], None]
    client: MlflowClient | None = None
    run_id: str = ""
    hurried: Callable[[], bool] | None = None
    _buffer: list[tuple[str, float, int, int]] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    def describe(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Log parameters and tags; a parameter that the run has already keeps its value."""

        def send(client: MlflowClient) -> None:
            from mlflow.entities import Param, RunTag

            known = client.get_run(self.run_id).data.params
            new = [Param(k, str(v)) for k, v in params.items() if k not in known]
            client.log_batch(self.run_id, params=new, tags=[RunTag(k, v) for k, v in tags.items()])

        self._attempt(send)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Buffer metrics; the buffer is sent every ten seconds, because a call costs 25 ms."""
        now = int(time.time() * 1000)
        self._buffer += [(key, float(value), now, step) for key, value in values.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the buffered metrics."""
        entries, self._buffer = self._buffer, []
        self._flushed = time.monotonic()

        def send(client: MlflowClient) -> None:
            from mlflow.entities import Metric

            for first in range(0, len(entries), CALL_LIMIT):
                batch = [Metric(*entry) for entry in entries[first : first + CALL_LIMIT]]
                client.log_batch(self.run_id, metrics=batch)

        self._attempt(send)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""
        self._attempt(lambda client: client.log_artifact(self.run_id, str(path), folder))

    def latest(self, run_id: str) -> dict[str, float]:
        """Return the last value of each metric of another run of the same tracker."""
        found: dict[str, float] = {}
        self._attempt(lambda client: found.update(client.get_run(run_id).data.metrics))
        return found

    def finish(self, status: str) -> None:
        """Send what is left and end the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self._attempt(lambda client: client.set_terminated(self.run_id, status=status))

    def _attempt(self, action: Callable[[MlflowClient], object]) -> None:
        if self.client is None:
            return
        try:
            if self.hurried is None:
                action(self.client)
            else:
                _unless(self.hurried, partial(action, self.client))
        except Exception as error:  # a tracker's failure, of any kind, must not end the training
            self.client = None
            self.warn(one_line("tracking stopped, training goes on", error))


def _unless(hurried: Callable[[], bool], action: Callable[[], object]) -> None:
    """Do something in a thread, and leave it there where that takes long and there is a hurry.

    A signal is not heard within a call of SQLite, which waits 20 seconds for a lock; it is heard
    while another thread is waited for.

    Raises:
        TimeoutError: it was left to the thread, which dies with the process.
        Exception: what it raised.
    """
    raised: list[Exception] = []

    def work() -> None:
        try:
            action()
        except Exception as error:
            raised.append(error)

    worker = Thread(target=work, daemon=True)
    worker.start()
    worker.join(STOP_SECONDS)
    while worker.is_alive():
        if hurried():
            raise TimeoutError("no answer, and the process was told to end")
        worker.join(POLL_SECONDS)
    if raised:
        raise raised[0]


def open_tracker(
    target: Target | None, *, run_id: str | None, warn: Callable[[str], None]
) -> Tracker:
    """Start a run, or continue the run `run_id`; None as target means no tracking."""
    if target is None:
        return Tracker(warn=warn)
    try:
        client, run_id = _connect(target, run_id)
    except Exception as error:  # a tracker's failure, of any kind, must not end the training
        warn(one_line(f"no tracking at {target.uri}, training goes on without it", error))
        return Tracker(warn=warn)
    return Tracker(warn=warn, client=client, run_id=run_id)


@contextmanager
def closing(tracker: Tracker) -> Iterator[None]:
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


def mlflow_client(uri: str) -> MlflowClient:
    """Return MLflow's client; importing mlflow takes seconds, and it is kept quiet."""
    make = _import_mlflow()
    with without_stray_folders(uri):
        return make(uri)


def _import_mlflow() -> type[MlflowClient]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # With MLflow's own limits, a server that cannot be reached holds a run up for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):  # importing mlflow sets its own level
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a failure is one warning, and ours
    return MlflowClient


def one_line(what: str, error: Exception) -> str:
    """Return what went wrong with the tracker, for a warning."""
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return f"{what} ({reason[0][:200]})"


def _connect(target: Target, run_id: str | None) -> tuple[MlflowClient, str]:
    _import_mlflow()  # seconds, for which the others must not have to wait
    # Processes that meet on a new database would each try to create its tables.
    with _database_lock(target.uri):
        database = database_file(target.uri)
        if database is not None:
            _make_database(database)
            take_artifacts(database)
        client = mlflow_client(target.uri)
        from mlflow.exceptions import MlflowException

        if run_id is not None:
            try:
                client.update_run(run_id, status="RUNNING")
            except MlflowException:
                run_id = None  # the database is another one now: begin a new run in it
        if run_id is None:
            run = client.create_run(_experiment(client, target), run_name=target.run_name)
            run_id = run.info.run_id
    return client, run_id


def _make_database(database: Path) -> None:
    """Let a new database appear with all of its tables: MLflow cannot go on with some of them."""
    for leftover in database.parent.glob(f".{database.name}.*.tmp*"):
        leftover.unlink()  # of a process that was killed here
    if not database.exists():
        with temporary(database) as scratch:
            mlflow_client(sqlite_uri(scratch))
            commit(scratch, database)


def _experiment(client: MlflowClient, target: Target) -> str:
    found = client.get_experiment_by_name(target.experiment)
    if found is not None:
        return str(found.experiment_id)
    artifacts = None  # a server chooses its own place
    database = database_file(target.uri)
    if database is not None:
        artifacts = (database.resolve().parent / ARTIFACTS / target.experiment).as_uri()
    made = client.create_experiment(target.experiment, artifact_location=artifacts, tags=KIND)
    return str(made)


def _database_lock(uri: str) -> AbstractContextManager[object]:
    database = database_file(uri)
    if database is None:
        return nullcontext()
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock", timeout=120)
