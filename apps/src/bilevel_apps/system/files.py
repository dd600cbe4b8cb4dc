"""Results that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bilevel_apps.errors import InputError, RunError
from bilevel_data import DataError
from bilevel_data.files.atomic import commit, temporary
from bilevel_data.files.limits import MAX_RECORD_BYTES
from bilevel_data.files.regular_file import read_plain

__all__ = [
    "check_writable",
    "disk_failed",
    "is_file",
    "is_there",
    "read_json",
    "write_files",
    "write_text",
    "write_whole",
]


def is_there(path: Path) -> bool:
    """Say whether there is something of a name; of one that is too long, say, there is nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):  # whoever writes there says what is wrong with it
        return False


def is_file(path: Path) -> bool:
    """Say whether there is a file of a name, as `is_there` does."""
    return is_there(path) and path.is_file()


def check_writable(folder: Path) -> None:
    """Say now, and not after the work, that a folder cannot be made or written; makes nothing.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        fits = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        reason = "no permission" if there.is_dir() else f"{there} is not a folder"
    except OSError as error:  # such as a name that is too long
        fits, reason = False, str(error.strerror)
    if not fits:
        raise InputError(f"{folder}: cannot write here ({reason}): choose another")


def disk_failed(error: OSError) -> bool:
    """Say whether the disk is to blame, which is full or broken, and not what was asked of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def write_files(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, which is made if it is missing; returns their paths.

    All of them are on the disk under temporary names before the first one gets its own, so that a
    full disk leaves what stood there before.

    Raises:
        InputError: the folder cannot be made or written.
        RunError: a file cannot be written.
    """
    check_writable(folder)
    paths = [folder / name for name in files]
    try:
        _write_all(list(zip(paths, files.values(), strict=True)))
    except (OSError, DataError) as error:
        raise RunError(f"{folder}: cannot write here ({error})") from error
    return paths


def read_json(path: Path) -> Any:
    """Return what a JSON file of a run or a table holds; it may be somebody else's.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, is not a plain file, is too large, or is no JSON.
    """
    try:
        remedy = "restore it, or remove it"
        content = read_plain(path, MAX_RECORD_BYTES, what="JSON", remedy=remedy)
        return json.loads(content.decode())
    except DataError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError(f"{path}: expected JSON, found too many brackets") from None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, flush it to the disk, give it its name.

    Raises:
        RunError: it cannot be written; a file that stood there before is untouched.
    """
    try:
        with temporary(path) as scratch:
            write(scratch)
            commit(scratch, path)
    except (OSError, DataError) as error:
        raise RunError(f"{path}: cannot write ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text, as `write_whole` does."""
    write_whole(path, lambda scratch: scratch.write_text(text, "utf-8"))


def _write_all(files: list[tuple[Path, bytes]]) -> None:
    if not files:
        return
    (path, content), *others = files
    with temporary(path) as scratch:
        scratch.write_bytes(content)
        _write_all(others)
        commit(scratch, path)
