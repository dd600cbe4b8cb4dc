"""Reading the members of a zip without unpacking it anywhere."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, cast, final

from bilevel_data.errors import DataError
from bilevel_data.files.regular_file import reading

__all__ = ["open_zip", "read_member"]

# What a member begins with in a zip's list of them; the most bytes that one may have there on
# average; and those of the end of a zip, in which the list is looked for.
_ENTRY, _ENTRY_BYTES, _TAIL_BYTES = b"PK\1\2", 1024, 1 << 17
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# ValueError: among others of names that are not the UTF-8 they claim to be.
_DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


@contextmanager
def open_zip(path: Path, *, max_members: int) -> Iterator[zipfile.ZipFile]:
    """A zip, closed again at the end; what is wrong with it inside the block too is a `DataError`.

    Args:
        path: the zip.
        max_members: most members that the zip may have.

    Raises:
        DataError: not a zip, damaged, or with more members.
    """
    with reading(path):
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            msg = f"{path}: expected a zip, found something that is not a plain file"
            raise DataError(f"{msg}: give a zip")
    try:
        with path.open("rb") as file:
            listed = _Listed(file, path, max_members)
            with zipfile.ZipFile(cast("IO[bytes]", listed)) as archive:
                listed.opened = True
                for member in archive.infolist():
                    _check_member(path, member)
                yield archive
    except DataError:  # a ValueError itself
        raise
    except _DAMAGE as err:
        reason = getattr(err, "strerror", None) or " ".join(str(err).split())[:120]
        msg = f"{path}: expected a zip, cannot read it ({reason})"
        raise DataError(f"{msg}: make it readable, or fetch it again") from None


@final
class _Listed:
    """A zip's file, of which a list of too many members is not even parsed.

    Python makes an object of each member before it can be asked how many there are: ten seconds
    and a gigabyte for some millions of them.
    """

    def __init__(self, file: BufferedReader, path: Path, cap: int) -> None:
        self.file, self.path, self.cap = file, path, cap
        self.opened = False
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.name = str(path)

    def read(self, size: int = -1) -> bytes:
        """Read, and while the zip is being opened, count the members of what was read."""
        if not self.opened and size > _TAIL_BYTES + self.cap * _ENTRY_BYTES:
            raise DataError(_too_many(self.path, "", self.cap))
        content = self.file.read(size)
        if not self.opened and (count := content.count(_ENTRY)) > self.cap:
            raise DataError(_too_many(self.path, f"{count} members, ", self.cap))
        return content


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse what would lead out of the folder that it is unpacked in, though nothing here is."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    parts = member.filename.replace("\\", "/").split("/")
    leads_out = parts[0] == "" or ".." in parts or parts[0].endswith(":")
    if leads_out or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "leads out of its folder" if leads_out else "is a link or a device"
        raise DataError(f"{path}: {member.filename!a} {what}: pack it again without it")


def _too_many(path: Path, found: str, cap: int) -> str:
    return f"{path}: {found}more than {cap} members: give the zip of the data set itself"


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, cap: int) -> bytes:
    """One member of a zip that `open_zip` has opened.

    Raises:
        DataError: encrypted, packed in another way, or more than `cap` bytes unpacked.
    """
    where = f"{archive.filename}: {member.filename!r}"
    if member.flag_bits & 1 or member.compress_type not in _METHODS:
        raise DataError(f"{where}: encrypted, or packed in an unusual way: pack it again")
    with archive.open(member) as file:
        # One byte more than allowed, as the size that the zip states may be a lie.
        content = file.read(cap + 1)
    if len(content) > cap:
        raise DataError(f"{where}: unpacks to more than {cap} bytes: remove it from the zip")
    return content
