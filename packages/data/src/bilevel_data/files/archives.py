"""The pictures of a zip or a tar, in a folder of their own for as long as they are needed."""

import lzma
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

from bilevel_data.dataset import Images, Lazy, SourceData, SourceSplit
from bilevel_data.errors import DataError, WriteError
from bilevel_data.files.limits import MAX_ARCHIVE_BYTES, MAX_ENTRIES, MAX_PICTURE_BYTES
from bilevel_data.files.litter import is_litter
from bilevel_data.files.picture_folders import SUFFIXES
from bilevel_data.files.regular_file import reading
from bilevel_data.files.zip_files import open_zip, read_member

__all__ = ["from_archive"]

_REMEDY = "give a zip or a tar of pictures, or the folder that it was unpacked to"
_SMALLER = "give the folder that it was unpacked to"
_DAMAGE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
_Member = tuple[str, Callable[[], bytes]]


def from_archive(load: Callable[..., SourceData]) -> Callable[..., SourceData]:
    """A source of folders that takes archives too: zip, tar, tar.gz, tar.bz2, tar.xz.

    Pictures alone are unpacked, to a temporary folder that goes when the source does. Links and
    whatever else an archive may hold are passed over.

    Raises:
        DataError: as the source, or the file is no archive, damaged or too large.
        WriteError: there is no room for its pictures.
    """

    def loaded(*, path: Path | None, **options: object) -> SourceData:
        with reading(path or Path()):
            packed = path is not None and path.is_file()
        if path is None or not packed:
            return load(path=path, **options)
        unpacked = _Unpacked(path)
        found = load(path=unpacked.path, **options)
        return replace(found, splits=tuple(_holding(split, unpacked) for split in found.splits))

    return loaded


@final
class _Unpacked:
    """A folder that is removed with the last who knows it.

    Attributes:
        path: the folder; its name begins with that of the archive, which messages then name.
    """

    def __init__(self, archive: Path) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=f"{archive.name}-"))
        except OSError as err:
            raise WriteError(f"{archive}: cannot unpack it ({err.strerror}): {_SMALLER}") from None
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        try:
            _unpack(archive, self.path)
        except BaseException:
            self._remove()
            raise


def _holding(split: SourceSplit, folder: _Unpacked) -> SourceSplit:
    return replace(split, images=Lazy(make=partial(_made, split, folder)))


def _made(split: SourceSplit, folder: _Unpacked) -> Iterator[Images]:
    yield from split.images
    del folder  # known until here


def _unpack(archive: Path, to: Path) -> None:
    members = _of_zip if zipfile.is_zipfile(archive) else _of_tar
    count = total = 0
    with members(archive) as found:
        for name, read in found:
            if not _is_picture(name):
                continue
            content = read()
            count, total = count + 1, total + len(content)
            MAX_ENTRIES.check(str(archive), count, _SMALLER)
            MAX_ARCHIVE_BYTES.check(str(archive), total, _SMALLER)
            place = to / name
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            except OSError as err:
                raise WriteError(
                    f"{archive}: cannot unpack {name!a} ({err.strerror}): {_SMALLER}"
                ) from None
    if not count:
        raise DataError(f"{archive}: no pictures ({' '.join(SUFFIXES)}) in it: {_REMEDY}")


def _is_picture(name: str) -> bool:
    """Whether a member is taken: a picture's name, that leads nowhere else."""
    parts = name.split("/")
    safe = not name.startswith("/") and not {"", ".."} & set(parts) and "\\" not in name
    return safe and name.lower().endswith(SUFFIXES) and not is_litter(name)


@contextmanager
def _of_zip(archive: Path) -> Iterator[Iterator[_Member]]:
    cap = MAX_PICTURE_BYTES.get()
    with open_zip(archive, max_members=MAX_ENTRIES.get()) as opened:
        yield (
            (member.filename, partial(read_member, opened, member, cap))
            for member in opened.infolist()
            if not member.is_dir()
        )


@contextmanager
def _of_tar(archive: Path) -> Iterator[Iterator[_Member]]:
    try:
        with tarfile.open(archive, "r:*") as opened:
            yield (
                (member.name.removeprefix("./"), partial(_read, opened, member, archive))
                for member in opened
                if member.isreg()
            )
    except DataError:  # a ValueError itself
        raise
    except _DAMAGE as err:
        reason = " ".join(str(err).split())[:120]
        raise DataError(f"{archive}: no archive that can be read ({reason}): {_REMEDY}") from None


def _read(opened: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> bytes:
    MAX_PICTURE_BYTES.check(f"{archive}: {member.name!a}", member.size, "make it smaller")
    file = opened.extractfile(member)
    return b"" if file is None else file.read()
