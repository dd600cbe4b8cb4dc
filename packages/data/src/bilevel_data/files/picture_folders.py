"""A person's folder of pictures, a directory a class: what is in it, and what to pass over."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from bilevel_data.files.limits import MAX_ENTRIES
from bilevel_data.files.litter import is_litter
from bilevel_data.files.regular_file import reading

__all__ = ["SUFFIXES", "directories", "pictures_and_strays", "some"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_NAMED = 10


def directories(folder: Path) -> list[Path]:
    """The directories in a folder, sorted; what was left behind is passed over.

    Raises:
        DataError: the folder cannot be read, or has more than `MAX_ENTRIES` entries.
    """
    return [entry for entry in _entries(folder) if entry.is_dir()]


def pictures_and_strays(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The pictures in a folder by their names, and whatever else is there; both sorted.

    What was left behind is in neither.

    Raises:
        DataError: as `directories`.
    """
    entries = _entries(folder)
    good = [e for e in entries if e.suffix.lower() in SUFFIXES and e.is_file()]
    return tuple(good), tuple(entry for entry in entries if entry not in set(good))


def some(found: Sequence[object], top: Path | None = None) -> str:
    """The first ten of several, for a message; paths are given from a folder on."""
    shown = [_from(top, item) for item in found[:_NAMED]]
    return ", ".join(shown) + (", …" if len(found) > _NAMED else "")


def _from(top: Path | None, item: object) -> str:
    if top is not None and isinstance(item, Path) and item.is_relative_to(top):
        return str(item.relative_to(top))
    return str(item)


def _entries(folder: Path) -> list[Path]:
    with reading(folder):
        found = list(islice(folder.iterdir(), MAX_ENTRIES.get() + 1))
    MAX_ENTRIES.check(str(folder), len(found), "give a smaller folder")
    return [entry for entry in sorted(found) if not is_litter(entry.name)]
