"""An item's report as files: Markdown for people, CSV with every digit, JSON for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

from bilevel_apps.drawing.style import png_of
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row
from bilevel_apps.system.tables import aligned, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "as_csv",
    "as_files",
    "as_lines",
    "as_markdown",
    "claim_line",
    "markdown_table",
    "svg_of",
]


def as_files(item: Item, report: Report, document: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the content of every file by its name."""
    figure = report.picture()
    return {
        f"{item.name}.png": png_of(figure),
        f"{item.name}.svg": svg_of(figure, item.name),
        f"{item.name}.csv": as_csv(report.rows).encode(),
        f"{item.name}-details.csv": as_csv(report.details).encode(),
        f"{item.name}.json": (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(),
        f"{item.name}.md": as_markdown(item, report, document).encode(),
    }


def svg_of(figure: Figure, salt: str) -> bytes:
    """Return the figure as an SVG file; the same figure gives the same bytes.

    Args:
        figure: what is drawn.
        salt: makes the names within the file.
    """
    from matplotlib import rc_context

    content = BytesIO()
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows for a spreadsheet."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_lines(rows: Sequence[Row]) -> list[str]:
    """Return a table for a terminal."""
    return aligned(_cells(rows), right=True)


def as_markdown(item: Item, report: Report, document: Mapping[str, Any]) -> str:
    """Return the whole report."""
    sections = {
        "Claims": "\n".join(f"- {claim_line(claim)}" for claim in report.claims),
        "Settings": _list(report.settings),
        "Cost": _list({**report.cost, **document["run"]}),
        "What differs from the paper": "\n".join(f"- {line}" for line in report.differs),
    }
    parts = [
        f"# {item.name}: {item.title}",
        item.paper.strip(),
        markdown_table(report.rows),
        f"![{item.title}]({item.name}.png)",
        *(f"## {title}\n\n{text}" for title, text in sections.items()),
    ]
    return "\n\n".join(parts) + "\n"


def claim_line(claim: Claim) -> str:
    """Return a claim and whether it holds."""
    return f"{'holds' if claim.holds else 'FAILS'}: {claim.text} ({claim.found})"


def markdown_table(rows: Sequence[Row]) -> str:
    """Return a table with the columns of the first row."""
    return markdown(_cells(rows))


def _list(entries: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_short(value)}" for name, value in entries.items())


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [list(rows[0]), *([_short(value) for value in row.values()] for row in rows)]


def _short(value: Any) -> str:
    """Return a number with at most four digits, and anything else as it is."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    return str(value)
