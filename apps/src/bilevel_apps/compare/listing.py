"""The runs of a database, a line each."""

from __future__ import annotations

from collections.abc import Sequence

from bilevel_apps.compare.table import Cell, Table, number
from bilevel_apps.compare.tracked import BEST, TrackedRun

__all__ = ["list_runs", "text_cell"]

COLUMNS = ("run", "id", "experiment", "status", "model", "task", "steps", "val accuracy", "minutes")
ID_LENGTH = 8


def list_runs(runs: Sequence[TrackedRun]) -> Table:
    """Return what a person wants to know first; the accuracy is that of the best checkpoint."""
    return Table(columns=COLUMNS, rows=[_row(run) for run in runs])


def text_cell(key: str, value: str) -> Cell:
    """Return a cell of text."""
    return Cell(shown=value, values={key: value})


def _row(run: TrackedRun) -> dict[str, Cell]:
    params = run.params
    texts = {
        "run": run.name,
        "id": run.id[:ID_LENGTH],
        "experiment": run.experiment,
        "status": run.status,
        "model": params.get("model.name"),
        "task": _task(run),
        "steps": _steps(run),
    }
    row = {key: text_cell(key, value) for key, value in texts.items() if value}
    if BEST in run.metrics:
        key = "val accuracy"
        row[key] = number(key, run.metrics[BEST], run.intervals.get(BEST), percent=True)
    if run.minutes is not None:
        row["minutes"] = Cell(shown=f"{run.minutes:.1f}", values={"minutes": run.minutes})
    return row


def _task(run: TrackedRun) -> str | None:
    way, shot = (run.params.get(f"episode.{key}") for key in ("way", "shot"))
    return f"{way}-way {shot}-shot" if way and shot else None


def _steps(run: TrackedRun) -> str | None:
    wanted = run.params.get("train.steps")
    return None if run.step is None else f"{run.step}/{wanted}" if wanted else str(run.step)
