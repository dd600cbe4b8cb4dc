"""Where MLflow has the runs; a database that is not there is never made."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from bilevel_apps.errors import InputError
from bilevel_apps.tracking.address import database_file, default_uri, sqlite_uri
from bilevel_apps.tracking.tracker import mlflow_client, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["client_of", "find_uri"]

MAGIC = b"SQLite format 3\x00"
TABLES = {"experiments", "runs", "metrics"}


def find_uri(given: str | None) -> str:
    """Return the address that was given, or that of the database where training puts it.

    Args:
        given: an address, or the path of a database file.

    Raises:
        InputError: there is no such database.
    """
    if given is not None:
        uri = given if "://" in given else sqlite_uri(Path(given))
    else:
        # A run's folder is RUNS/NAME: seen from beside RUNS, then from within.
        places = [default_uri(Path("runs", "any")), default_uri(Path("any"))]
        uri = next((place for place in places if _is_there(place)), places[0])
    if not _is_there(uri):
        raise InputError(
            f"{database_file(uri)}: no database of MLflow: train a run first, or give `uri`"
        )
    return uri


def client_of(uri: str) -> MlflowClient:
    """Return MLflow's client, once the address is known to answer.

    Raises:
        InputError: it does not, or is another program's database, to which MLflow would add tables.
    """
    path = database_file(uri)
    if path is not None and not _is_mlflows(path):
        raise InputError(f"{path}: a database, but not one of MLflow: give another `uri`")
    try:
        client = mlflow_client(uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # of any kind, from a database or from a server
        reason = one_line(f"{uri}: MLflow cannot read it", error)
        raise InputError(f"{reason}: give another `uri`") from None
    return client


def _is_there(uri: str) -> bool:
    path = database_file(uri)
    if path is None:
        return True
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _is_mlflows(path: Path) -> bool:
    """Say whether a database has MLflow's tables.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {name for (name,) in found} >= TABLES
    except sqlite3.Error as error:
        raise InputError(f"{path}: cannot be read ({error}): give another `uri`") from None
