"""A tutorial is a script; its page is the same text, comments as prose and code as code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cells", "tutorial_page"]

PROSE = "# %% [markdown]"
CODE = "# %%"


def cells(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the cells of a script in the percent format: whether it is prose, and its text."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(CODE)]
    for start, end in itertools.pairwise([*starts, len(lines)]):
        prose = lines[start].startswith(PROSE)
        body = lines[start + 1 : end]
        if prose:
            body = [line.removeprefix("#").removeprefix(" ") for line in body]
        yield prose, "\n".join(body).strip("\n")


def tutorial_page(script: Path) -> str:
    """Return a script's page, which ends with where the script is."""
    parts = [
        text if prose else f"```python\n{text}\n```"
        for prose, text in cells(script.read_text("utf-8"))
        if text
    ]
    parts.append(f"*This page is the script `docs/tutorials/{script.name}`, which the tests run.*")
    return "\n\n".join(parts) + "\n"
