"""A table as text, CSV or Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import StringIO
from typing import final

from bilevel_apps.system.tables import aligned, markdown

__all__ = ["Cell", "Format", "Table", "number"]

BLANK = "–"


class Format(StrEnum):
    """How to print a table."""

    TEXT = "text"
    CSV = "csv"
    MARKDOWN = "markdown"


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value for people, and the columns that it takes in a file of numbers."""

    shown: str
    values: Mapping[str, str | float]


def number(
    key: str,
    value: float,
    interval: float | None = None,
    *,
    percent: bool = False,
    signed: bool = False,
) -> Cell:
    """Return a cell of a number, with half its 95 % interval where that is known."""
    factor, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    sign = "+" if signed else ""
    shown = f"{factor * value:{sign}.{digits}f}" if percent else f"{value:{sign}.{digits}g}"
    values: dict[str, str | float] = {key: value}
    if interval is not None:
        shown += f" ± {factor * interval:.{digits}f}" if percent else f" ± {interval:.2g}"
        values[f"{key} ci95"] = interval
    return Cell(shown=shown + unit, values=values)


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells by column.

    Attributes:
        columns: the columns, in order.
        rows: by column; a cell may be missing.
        turns: as text, show a row as a column where that is narrower.
    """

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Cell]]
    turns: bool = False

    def render(self, form: Format) -> str:
        """Return the table, without a line end."""
        forms = {Format.CSV: self._csv, Format.MARKDOWN: self._markdown, Format.TEXT: self._text}
        return forms[form]()

    def _shown(self) -> list[list[str]]:
        """Return the heading and the rows."""
        blank = Cell(shown=BLANK, values={})
        rows = [[row.get(c, blank).shown for c in self.columns] for row in self.rows]
        return [list(self.columns), *rows]

    def _text(self) -> str:
        """Return aligned columns."""
        rows = self._shown()
        forms = [rows, [list(column) for column in zip(*rows, strict=True)]]
        made = ["\n".join(aligned(form)) for form in (forms if self.turns else forms[:1])]
        return min(made, key=_width)

    def _markdown(self) -> str:
        return markdown(self._shown())

    def _csv(self) -> str:
        """Return numbers at full precision, intervals in columns of their own."""
        names: dict[str, None] = {}
        for column in self.columns:
            parts = [key for row in self.rows if column in row for key in row[column].values]
            names |= dict.fromkeys(parts or [column])
        content = StringIO()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(names)
        for row in self.rows:
            values = {key: value for cell in row.values() for key, value in cell.values.items()}
            writer.writerow([values.get(name, "") for name in names])
        return content.getvalue().rstrip("\n")


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))
