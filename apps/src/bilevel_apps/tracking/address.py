"""Addresses of MLflow's databases: a path is not one until it is quoted."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from bilevel_apps.system.files import is_file

__all__ = [
    "ARTIFACTS",
    "SQLITE",
    "database_file",
    "default_uri",
    "has_run",
    "sqlite_uri",
    "take_artifacts",
    "without_stray_folders",
]

SQLITE = "sqlite:///"
ARTIFACTS = "mlartifacts"  # beside the database
# What reads the places of runs' files in MLflow's tables, and what changes one.
_PLACES = (
    (
        "SELECT DISTINCT artifact_location FROM experiments",
        "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
    ),
    (
        "SELECT DISTINCT artifact_uri FROM runs",
        "UPDATE runs SET artifact_uri = ? WHERE artifact_uri = ?",
    ),
)


def sqlite_uri(database: Path) -> str:
    """Return the address of a database file; `%` and `?` in its path are quoted."""
    return SQLITE + str(database.resolve()).replace("%", "%25").replace("?", "%3F")


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite database, None for a server.

    Earlier versions wrote paths into addresses as they were: where there is such a file, it is
    meant.
    """
    if not uri.startswith(SQLITE):
        return None
    text = uri.removeprefix(SQLITE)
    found = Path(unquote(text.partition("?")[0]))
    return Path(text) if is_file(Path(text)) and not is_file(found) else found


@contextmanager
def without_stray_folders(uri: str) -> Iterator[None]:
    """Remove the folder that MLflow makes of a quoted path, while it opens the unquoted one."""
    stray = Path(uri.removeprefix(SQLITE)).parent
    database = database_file(uri)
    missing: list[Path] = []
    if database is not None and stray != database.parent:
        missing = [path for path in (stray, *stray.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # it was not made, or somebody else uses it
                path.rmdir()


def default_uri(run_folder: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or an SQLite database beside the run's folder."""
    beside = run_folder.resolve().parent / "mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(beside)


def has_run(database: Path, run_id: str) -> bool:
    """Say whether a file is a database of MLflow that has a run; it is not written to."""
    if not is_file(database):
        return False
    try:
        with closing(_connected(database, "ro")) as opened:
            query = "SELECT 1 FROM runs WHERE run_uuid = ?"
            return opened.execute(query, (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False


def take_artifacts(database: Path) -> None:
    """Let runs keep their files beside a database that was moved, and not where it was before.

    MLflow has the absolute place of each run's files, and would make the old folder again.

    Raises:
        sqlite3.Error: the database cannot be written.
    """
    here = (database.resolve().parent / ARTIFACTS).as_uri() + "/"
    with closing(_connected(database, "rw")) as opened, opened:
        for query, change in _PLACES:
            for (place,) in opened.execute(query).fetchall():
                moved = _moved(place or "", here)
                if moved:
                    opened.execute(change, (moved, place))


def _moved(place: str, here: str) -> str | None:
    """Return where files of a run lie now, if they do not lie where they are said to."""
    before, mark, rest = place.partition(f"/{ARTIFACTS}/")
    if not mark or not before.startswith("file:") or place.startswith(here):
        return None
    old, new = (Path(unquote(text.removeprefix("file://"))) for text in (place, here + rest))
    return here + rest if new.exists() or not old.exists() else None


def _connected(database: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode={mode}", uri=True)
