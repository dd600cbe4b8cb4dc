"""The record of a run's folder in MLflow: begun, continued, or added to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bilevel_apps.config import TrackingSection
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.terminal import warn
from bilevel_apps.tracking.address import database_file, default_uri, take_artifacts
from bilevel_apps.tracking.place import record_of
from bilevel_apps.tracking.tracker import Target, Tracker, mlflow_client, one_line, open_tracker
from bilevel_data import Store

__all__ = ["CURVE", "FOLDER_TAG", "begin_child", "begin_run", "tracked_again"]

FOLDER_TAG = "run.folder"
CURVE = "by-T"  # in the names of metrics whose step is T
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: its interface folds children into their parent


def begin_run(
    tracking: TrackingSection, folder: RunFolder, store: Store, *, resume: bool
) -> tuple[Tracker, Target]:
    """Begin the record of a run, or continue that of its folder; returns it, and where it is.

    Args:
        tracking: where to, if not beside the folder, under the name of the data set.
        folder: gives the run its name, and remembers where it is recorded.
        store: the data set.
        resume: continue the record that the folder knows of.
    """
    uri, run_id = _place(tracking, folder, resume=resume)
    target = Target(
        uri=uri,
        experiment=tracking.experiment or store.manifest.name,
        run_name=folder.path.resolve().name,
    )
    return _begin(folder, target, run_id), target


def _place(tracking: TrackingSection, folder: RunFolder, *, resume: bool) -> tuple[str, str | None]:
    """Return the tracker's address, and the run to continue there.

    What was moved is not made again where it was.
    """
    given = tracking.uri
    known = record_of(folder) if resume else None
    if known is None or (given is not None and not _is_gone(given)):
        return given or default_uri(folder.path), None if known is None else known.run_id
    if known.found or not _is_gone(known.uri):
        return known.uri, known.run_id
    uri = default_uri(folder.path)
    warn(
        f"{folder.path}: its record in MLflow is no longer at {database_file(known.uri)}: a new "
        f"one begins at {database_file(uri) or uri}; a database that was moved is named by --set "
        "tracking.uri=sqlite:///FILE.db"
    )
    return uri, None


def _is_gone(uri: str) -> bool:
    """Say whether a database is no longer in its folder, or never was."""
    path = database_file(uri)
    try:
        return path is not None and not path.exists()
    except OSError:  # such as a name that is too long: the tracker says so
        return False


def begin_child(parent: Tracker, target: Target, folder: RunFolder) -> Tracker:
    """Make the run that a training in `folder` will continue, as a child of the parent's run.

    A folder whose run began before keeps it.
    """
    if parent.client is None:
        return Tracker(warn=parent.warn)
    known = record_of(folder)
    tracker = _begin(folder, target, None if known is None else known.run_id)
    tracker.describe({}, {PARENT_TAG: parent.run_id})
    return tracker


@contextmanager
def tracked_again(folder: Path) -> Iterator[Tracker]:
    """Add results to the run of a folder, and leave its status and its times as they are.

    A run that was not tracked, or cannot be reached, costs a warning.
    """
    known = record_of(RunFolder(folder))
    tracker = Tracker(warn=warn)
    if known is None:
        warn(f"{folder}: the run was not tracked, so nothing is logged")
    elif not known.found and _is_gone(known.uri):
        warn(
            f"{folder}: its record in MLflow is no longer at {database_file(known.uri)}, so "
            "nothing is logged: move the database beside the run's folder"
        )
    else:
        try:
            database = database_file(known.uri)
            if database is not None:
                take_artifacts(database)
            client = mlflow_client(known.uri)
            tracker = Tracker(warn=warn, client=client, run_id=known.run_id)
        except Exception as error:  # a tracker's failure, of any kind, must not end the command
            warn(one_line(f"no tracking at {known.uri}", error))
    yield tracker
    tracker.flush()


def _begin(folder: RunFolder, target: Target, run_id: str | None) -> Tracker:
    """Open a tracker, and let the folder remember where it records."""
    tracker = open_tracker(target, run_id=run_id, warn=warn)
    if tracker.client is not None:
        folder.save_tracking(target.uri, tracker.run_id)
    return tracker
