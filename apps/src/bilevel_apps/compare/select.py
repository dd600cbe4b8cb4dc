"""Which runs are meant: by folder, by name, or by the beginning of MLflow's identifier."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from bilevel_apps.compare.tracked import TrackedRun, pretrained_run, read_run, untracked_run
from bilevel_apps.errors import InputError
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.pretrained import pretrained_tag
from bilevel_apps.tracking.place import record_of

__all__ = ["choose_runs"]

SHORTEST_ID = 4


def choose_runs(
    words: Sequence[str], recorded: Callable[[], Sequence[TrackedRun]], uri: str | None = None
) -> list[TrackedRun]:
    """Return a run for each word, none twice.

    Args:
        words: folders of runs, `pretrained:TAG`, names, or beginnings of identifiers.
        recorded: returns the runs that names are looked for in; called if there is a need.
        uri: of the tracker, in the place of the one that a folder knows of.

    Raises:
        InputError: a word that means no run, or several.
    """
    known: Sequence[TrackedRun] | None = None
    chosen: list[TrackedRun] = []
    for word in words:
        run = _of_folder(Path(word), uri)
        if run is None:
            known = recorded() if known is None else known
            run = _named(word, known)
        if all((run.id, run.folder) != (other.id, other.folder) for other in chosen):
            chosen.append(run)
    return chosen


def _of_folder(path: Path, uri: str | None) -> TrackedRun | None:
    tag = pretrained_tag(path)
    if tag is not None:
        return pretrained_run(tag)
    folder = RunFolder(path)
    if not folder.began():
        return None
    known = record_of(folder)
    return untracked_run(path) if known is None else read_run(uri or known.uri, known.run_id, path)


def _named(word: str, known: Sequence[TrackedRun]) -> TrackedRun:
    found = [run for run in known if run.name == word]
    if not found and len(word) >= SHORTEST_ID:
        found = [run for run in known if run.id.startswith(word)]
    if len(found) == 1:
        return found[0]
    if not found:
        close = difflib.get_close_matches(word, [run.name for run in known], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see bilevel-runs list"
        raise InputError(f"{word}: no run has this name, folder or id: {hint}")
    ids = ", ".join(f"{run.id[:8]} ({run.experiment})" for run in found)
    raise InputError(f"{word}: {len(found)} runs are meant: give one's folder or id: {ids}")
