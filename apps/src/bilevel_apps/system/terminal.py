"""What a person sees while a command works: lines, warnings and a progress bar on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar", "say", "warn"]

PLAIN_SECONDS = 15.0  # between two lines of progress where there is no terminal

Update = Callable[..., None]


def say(line: str) -> None:
    """Print a line about the work on stderr; results go to stdout."""
    print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Print a warning, one line."""
    say(f"warning: {line}")


@contextmanager
def progress_bar(what: str, total: int, done: int = 0) -> Iterator[Update]:
    """Show progress; yields `update(done, note="")`.

    On a terminal a bar with the time that is left; elsewhere a line every fifteen seconds.
    """
    if not sys.stderr.isatty():
        yield _plain_lines(what, total, done)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done, note="")

        def update(done: int, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield update


def _plain_lines(what: str, total: int, done: int) -> Update:
    last = time.monotonic()
    start, first = last, done
    counted = False

    def update(done: int, note: str = "") -> None:
        nonlocal last, start, first, counted
        now = time.monotonic()
        if not counted:  # the first piece of work pays for imports; the rate is that of the others
            counted, start, first = True, now, done
        if done < total and now - last < PLAIN_SECONDS:
            return
        last = now
        rate = (now - start) / max(1, done - first)
        left = f", {rate * (total - done):.0f} s left" if first < done < total else ""
        say(f"{what}: {done}/{total}{left} {note}".rstrip())

    return update
