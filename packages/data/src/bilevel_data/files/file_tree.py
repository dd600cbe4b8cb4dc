"""The files of a folder or of a zip, listed and read in the same way."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from bilevel_data.errors import DataError
from bilevel_data.files.litter import is_litter
from bilevel_data.files.regular_file import reading
from bilevel_data.files.zip_files import open_zip, read_member

__all__ = ["FileTree", "open_tree"]


@final
@dataclass(frozen=True, kw_only=True)
class FileTree:
    """Files below a folder or in a zip. Nothing is held open and nothing is unpacked to the disk.

    Attributes:
        path: the folder or the zip.
        packed: whether it is a zip.
        names: names below it, parts joined by `/`, sorted; what was left behind is passed over.
        max_files: most files that it may have.
    """

    path: Path
    packed: bool
    names: tuple[str, ...]
    max_files: int

    def read(self, names: Iterable[str], *, max_bytes: int) -> Iterator[bytes]:
        """The contents of some of `self.names`, one after the other.

        Args:
            names: which ones, in this order.
            max_bytes: most bytes, unpacked, of one of them.

        Raises:
            DataError: one cannot be read, is not a plain file or has more bytes.
        """
        return (self._read_packed if self.packed else self._read_plain)(names, max_bytes)

    def _read_packed(self, names: Iterable[str], max_bytes: int) -> Iterator[bytes]:
        with open_zip(self.path, max_members=self.max_files) as archive:
            for name in names:
                try:
                    member = archive.getinfo(name)
                except KeyError:
                    raise DataError(f"{self.path}: {name!r} has gone: it was replaced") from None
                yield read_member(archive, member, max_bytes)

    def _read_plain(self, names: Iterable[str], max_bytes: int) -> Iterator[bytes]:
        for name in names:
            file = self.path / name
            with reading(file):
                if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for ever
                    msg = f"{file}: expected a plain file, found something else: remove it"
                    raise DataError(msg)
                with file.open("rb") as opened:
                    content = opened.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise DataError(f"{file}: more than {max_bytes} bytes: make it smaller")
            yield content


def open_tree(path: Path, *, max_files: int) -> FileTree:
    """List a folder or a zip.

    Raises:
        DataError: neither of them, damaged, more than `max_files` files, or a zip with two
            members of one name.
    """
    with reading(path):
        packed = not path.is_dir()
        found = _members(path, max_files) if packed else _files(path, max_files)
    names = tuple(sorted(name for name in found if not is_litter(name)))
    return FileTree(path=path, packed=packed, names=names, max_files=max_files)


def _members(path: Path, max_files: int) -> list[str]:
    with open_zip(path, max_members=max_files) as archive:
        names = [member.filename for member in archive.infolist() if not member.is_dir()]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: has two members of one name: pack it again")
    return names


def _files(path: Path, max_files: int) -> list[str]:
    def refuse(err: OSError) -> None:
        raise err  # which is left out otherwise

    names: list[str] = []
    # A link that leads back up would go round for ever, but for the cap.
    for folder, _, files in os.walk(path, onerror=refuse, followlinks=True):
        below = Path(folder).relative_to(path).as_posix()
        names += files if below == "." else [f"{below}/{file}" for file in files]
        if len(names) > max_files:
            msg = f"{path}: more than {max_files} files: give the folder of the data set itself"
            raise DataError(msg)
    return names
