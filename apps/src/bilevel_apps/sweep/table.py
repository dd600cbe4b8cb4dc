"""The children of a sweep beside one another."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

from pydantic import Field

from bilevel_apps.sweep.axes import Settings
from bilevel_apps.system.tables import aligned

__all__ = ["Child", "as_csv", "as_lines", "best_first", "short"]

COLUMNS = ("accuracy", "ci95", "step", "minutes", "name", "error")


@final
@dataclass(frozen=True, kw_only=True)
class Child:
    """What a child came to.

    Attributes:
        name: of its folder.
        settings: the swept keys' values.
        accuracy: of its best validation, in [0, 1]; None if it failed before one.
        ci95: half the 95 % interval of it, where it is known.
        step: the hyper-iteration of its best validation.
        minutes: of training, in the process that finished it.
        error: why it failed; None if it finished.
    """

    name: Annotated[str, Field(pattern=r"^\d[\w.=+-]*$")]  # never a way out of the folder
    settings: Settings
    accuracy: float | None = None
    ci95: float | None = None
    step: int | None = None
    minutes: float = 0.0
    error: str | None = None


def best_first(children: Sequence[Child]) -> list[Child]:
    """Return the finished children by falling accuracy, then the failed ones."""
    return sorted(children, key=lambda child: (child.error is not None, -(child.accuracy or 0.0)))


def as_lines(children: Sequence[Child]) -> list[str]:
    """Return a table for people, best child first."""
    ordered = best_first(children)
    keys = list(ordered[0].settings) if ordered else []
    rows = [["validation", "at", *keys, "folder"]]
    for child in ordered:
        values = [short(child.settings[key]) for key in keys]
        rows.append([_result(child), str(child.step or ""), *values, child.name])
    return aligned(rows)


def as_csv(children: Sequence[Child]) -> str:
    """Return the same for a spreadsheet, with whole numbers and errors."""
    text = io.StringIO()
    ordered = best_first(children)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(ordered[0].settings if ordered else ()), *COLUMNS])
    for child in ordered:
        writer.writerow([*child.settings.values(), *(getattr(child, name) for name in COLUMNS)])
    return text.getvalue()


def short(value: Any) -> str:
    """Return a setting with at most four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _result(child: Child) -> str:
    if child.error is not None or child.accuracy is None:
        return "failed"
    width = "" if child.ci95 is None else f" ± {100 * child.ci95:.2f}"
    return f"{100 * child.accuracy:.2f}{width} %"
