"""Finding what was moved together with something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["moved"]

LONGEST, HIGHEST = 4, 4


def moved(recorded: Path, near: Path, fits: Callable[[Path], bool]) -> Path | None:
    """Return where a file is now that lay at `recorded`, if it was moved along with `near`.

    The end of the recorded path is looked for in and above `near`, the nearest place first; then
    the recorded path itself.

    Args:
        recorded: absolute, as it was.
        near: a folder that was moved with it.
        fits: says whether what is found is what is looked for.
    """
    places = [near, *near.parents][: HIGHEST + 1]
    ends = [Path(*recorded.parts[-length:]) for length in range(1, LONGEST + 1)]
    found = (place / end for place in places for end in ends if not end.is_absolute())
    return next((path for path in (*found, recorded) if fits(path)), None)
