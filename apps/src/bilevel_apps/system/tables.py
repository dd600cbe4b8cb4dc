"""Rows of texts as a table, for a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "markdown"]


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Return a line for each row, with the columns under one another.

    Args:
        rows: as many texts each; the heading is one of them.
        right: all columns but the first stand to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose heading is the first row."""
    heading, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [heading, ["---"] * len(heading), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
