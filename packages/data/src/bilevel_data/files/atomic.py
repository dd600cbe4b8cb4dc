"""Files that appear whole or not at all, and their checksums."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from bilevel_data.errors import DataError, WriteError

__all__ = ["commit", "file_sha256", "read_sidecar", "sidecar_path", "temporary"]

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name for a new file in the folder of `path`; whatever is left there is removed.

    The folder is made if it is missing.

    Raises:
        DataError: the folder cannot be made or written to; a `WriteError` if the disk failed.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        refusal = WriteError if err.errno in _DISK else DataError
        raise refusal(f"{folder}: cannot make this folder ({err.strerror})") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: cannot write to this folder: choose another one")
    scratch = folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def commit(scratch: Path, path: Path) -> None:
    """Give a finished file its real name, after its bytes are on the disk."""
    _fsync(scratch)
    scratch.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are journalled
        _fsync(path.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sidecar_path(path: Path) -> Path:
    """The checksum file that belongs to a store: its name with `.sha256` added."""
    return path.with_name(f"{path.name}.sha256")


def read_sidecar(path: Path) -> str:
    """The checksum that the sidecar of `path` states.

    Raises:
        DataError: it is missing, malformed, or about another file.
    """
    sidecar = sidecar_path(path)
    try:
        if sidecar.exists() and not sidecar.is_file():  # opening a pipe would wait for ever
            raise DataError(
                f"{sidecar}: expected a line of sha256sum, found no plain file: remove it, and "
                "prepare the store again"
            )
        with sidecar.open("rb") as file:
            line = file.read(4096).decode()
    except FileNotFoundError:
        raise DataError(
            f"{sidecar}: missing, so {path.name} cannot be verified: put it beside "
            "the store, or prepare the store again"
        ) from None
    except (OSError, UnicodeDecodeError):
        raise DataError(
            f"{sidecar}: expected a line of sha256sum, cannot read it: restore it, or prepare the "
            "store again"
        ) from None
    digest, _, name = line.rstrip("\n").partition("  ")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef") or name != path.name:
        raise DataError(
            f"{sidecar}: expected '<64 hexadecimal digits>  {path.name}' as one line: restore it, "
            "or prepare the store again"
        )
    return digest
