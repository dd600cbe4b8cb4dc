"""Where MLflow has the run of a folder, wherever both were moved."""

from __future__ import annotations

from typing import NamedTuple

from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.moved import moved
from bilevel_apps.tracking.address import database_file, has_run, sqlite_uri

__all__ = ["TrackedPlace", "record_of"]


class TrackedPlace(NamedTuple):
    """The address of the tracker, the run in it, and whether it is known to be there."""

    uri: str
    run_id: str
    found: bool


def record_of(folder: RunFolder) -> TrackedPlace | None:
    """Return where the run of a folder is recorded, None where it was not tracked.

    A database that lies near the folder and has the run comes before the one that is written down.
    """
    known = folder.load_tracking()
    if not known:
        return None
    uri, run_id = known["uri"], known["run_id"]
    recorded = database_file(uri)
    if recorded is None:
        return TrackedPlace(uri, run_id, found=True)  # a server: it will say
    here = folder.path.resolve()
    found = moved(recorded, here, lambda path: has_run(path, run_id))
    return (
        TrackedPlace(uri, run_id, found=False)
        if found is None
        else TrackedPlace(sqlite_uri(found), run_id, found=True)
    )
