"""A table of runs: what they differ in, what they came to, and how they do on the same episodes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from bilevel_apps.compare.listing import text_cell
from bilevel_apps.compare.paired import EpisodeChoice, Paired, paired_scores
from bilevel_apps.compare.table import Cell, Table, number
from bilevel_apps.compare.tracked import TrackedRun
from bilevel_apps.config import Config
from bilevel_apps.errors import InputError

__all__ = ["CompareRequest", "compare_runs"]

# What decides nothing about a run's result.
LEFT_OUT = ("tracking.",)
# Of the last hyper-iterations alone, or of the outer problem's course.
METRICS_LEFT_OUT = ("outer/", "train/accuracy")
SECTIONS = ("val/", "test/")
USUAL_SORT = "val/accuracy"


@final
@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """How to compare.

    Attributes:
        sort: a metric, highest first, or a parameter; runs without it come last. None leaves the
            runs in the order in which they were given.
        episodes: to score all runs on, or None.
    """

    sort: str | None = USUAL_SORT
    episodes: EpisodeChoice | None = None


def compare_runs(runs: Sequence[TrackedRun], request: CompareRequest) -> tuple[Table, str]:
    """Return the table, a row a run, and a line on the episodes that all were scored on.

    Raises:
        InputError: nothing to sort by.
    """
    ordered = _sorted(runs, request.sort)
    rows: list[dict[str, Cell]] = [_row(run) for run in ordered]
    note = ""
    if request.episodes is not None:
        paired = paired_scores(ordered, request.episodes)
        note = _add(rows, ordered, paired)
    params = [_params(run) for run in ordered]
    differing = _differing(params)
    for row, known in zip(rows, params, strict=True):
        row |= {key: text_cell(key, known[key]) for key in differing if key in known}
    return Table(columns=_columns(rows, differing), rows=rows, turns=True), note


def _sorted(runs: Sequence[TrackedRun], key: str | None) -> list[TrackedRun]:
    if key is None:
        return list(runs)
    if any(key in run.metrics for run in runs):
        return sorted(runs, key=lambda run: -run.metrics.get(key, float("-inf")))
    if any(key in run.params for run in runs):
        return sorted(runs, key=lambda run: _sortable(run.params.get(key)))
    known = sorted({name for run in runs for name in (*run.metrics, *run.params)})
    if key == USUAL_SORT:  # nothing was validated yet, and nobody asked
        return list(runs)
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    raise InputError(f"`sort`={key}: no run has it: try {', '.join(close) or 'val/accuracy'}")


def _sortable(value: str | None) -> tuple[int, float, str]:
    """Return a key that puts numbers in order, then words, then nothing."""
    if value is None:
        return (2, 0.0, "")
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def _params(run: TrackedRun) -> dict[str, str]:
    """Return a training's parameters; a key that is newer than the run has its default."""
    defaults = Config().flat() if "model.name" in run.params else {}
    return {key: str(value) for key, value in defaults.items()} | dict(run.params)


def _differing(params: Sequence[Mapping[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for known in params for key in known)
    return [
        key
        for key in keys
        if not key.startswith(LEFT_OUT) and len({known.get(key) for known in params}) > 1
    ]


def _row(run: TrackedRun) -> dict[str, Cell]:
    row = {"run": text_cell("run", run.name)}
    if run.id:
        row["id"] = Cell(shown=run.id[:8], values={"id": run.id})
    row["status"] = text_cell("status", run.status)
    for key, value in run.metrics.items():
        if not key.startswith(METRICS_LEFT_OUT):
            percent = key.endswith("accuracy")
            row[key] = number(key, value, run.intervals.get(key), percent=percent)
    if run.minutes is not None:
        row["minutes"] = Cell(shown=f"{run.minutes:.1f}", values={"minutes": run.minutes})
    return row


def _add(rows: Sequence[dict[str, Cell]], runs: Sequence[TrackedRun], paired: Paired) -> str:
    """Add the scores and differences to the rows; returns what they are."""
    reference = next((run for run, s in zip(runs, paired.scores, strict=True) if s), None)
    if reference is None:
        return ""
    difference = f"difference to {reference.name}"
    for row, inner in zip(rows, paired.inner, strict=True):
        if inner is not None and inner.steps is None:
            row["head"] = text_cell("head", "optimum")
        elif inner is not None:
            row["head"] = text_cell("head", "descent")
            row["T"] = text_cell("T", str(inner.steps))
            row["η"] = Cell(shown=f"{inner.lr:.3g}", values={"η": inner.lr})
    for row, scored, apart in zip(rows, paired.scores, paired.differences, strict=True):
        for key, found in (("same episodes", scored), (difference, apart)):
            if found is not None:
                row[key] = number(
                    key, found.accuracy, found.ci95, percent=True, signed=key == difference
                )
    return f"same episodes: {paired.what}; ± is half the 95 % interval"


def _columns(rows: Sequence[dict[str, Cell]], differing: Sequence[str]) -> list[str]:
    """Return the columns: the run, what it differs in, the metrics by section, the rest."""
    every = dict.fromkeys(key for row in rows for key in row)
    first = [key for key in ("run", "id", "status") if key in every]
    ends = ("minutes", "head", "T", "η", "same episodes")
    last = [key for key in every if key in ends or key.startswith("difference to ")]
    metrics = [key for key in every if key not in {*first, *differing, *last}]
    metrics.sort(
        key=lambda key: (not key.startswith(SECTIONS[0]), not key.startswith(SECTIONS[1]), key)
    )
    return [*first, *differing, *metrics, *last]
