"""A tutorial is a script; its page is the same text with what it prints.

Comments become prose and code stays code. `python tools/docs/tutorials.py SCRIPT` runs one and
writes what each of its cells printed, as JSON.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["cells", "run_cells", "tutorial_page"]

PROSE = "# %% [markdown]"
CODE = "# %%"


def cells(text: str) -> list[tuple[bool, str]]:
    """Return the cells of a script in the percent format: whether each is prose, and its text."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(CODE)]
    found = []
    for start, end in itertools.pairwise([*starts, len(lines)]):
        prose = lines[start].startswith(PROSE)
        body = lines[start + 1 : end]
        if prose:
            body = [line.removeprefix("#").removeprefix(" ") for line in body]
        found.append((prose, "\n".join(body).strip("\n")))
    return found


def run_cells(text: str, name: str) -> list[str]:
    """Run a script cell by cell; return what each printed (prose: nothing)."""
    scope: dict[str, object] = {"__name__": "__main__"}
    printed = []
    for prose, body in cells(text):
        out = io.StringIO()
        if not prose:
            with contextlib.redirect_stdout(out):
                exec(compile(body, name, "exec"), scope)
        printed.append(out.getvalue().rstrip())
    return printed


def outputs(script: Path) -> list[str]:
    """Run a script in a process of its own, in an empty folder; return what each cell printed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), str(script.resolve())]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=folder, check=True, stdout=subprocess.PIPE, env=one_thread
        )
    return list(json.loads(done.stdout))


def tutorial_page(script: Path) -> str:
    """Return a script's page; with BILEVEL_DOCS=draft it is not run, and its output is left out."""
    found = cells(script.read_text("utf-8"))
    draft = os.environ.get("BILEVEL_DOCS") == "draft"
    printed_by_cell = [""] * len(found) if draft else outputs(script)
    parts = []
    for (prose, text), printed in zip(found, printed_by_cell, strict=True):
        parts.append(text if prose else f"```python\n{text}\n```")
        if printed:
            parts.append(f"```text\n{printed}\n```")
    parts.append(
        f"*This page is the script `docs/tutorials/{script.name}`; what it printed is of the run "
        "that made the page.*"
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    print(json.dumps(run_cells(path.read_text("utf-8"), path.name)))
