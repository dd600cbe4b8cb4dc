"""Reading the members of a zip without unpacking it anywhere."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bilevel_data.errors import DataError

__all__ = ["open_zip", "read_member", "read_zip"]

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# ValueError: among others of names that are not the UTF-8 they claim to be.
_DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


@contextmanager
def open_zip(path: Path, *, max_members: int) -> Iterator[zipfile.ZipFile]:
    """A zip, closed again at the end; what is wrong with it inside the block too is a `DataError`.

    Args:
        path: The zip.
        max_members: Most members that the zip may have.

    Raises:
        DataError: Not a zip, damaged, or with more members.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_count(path, len(archive.infolist()), max_members)
            yield archive
    except DataError:  # a ValueError itself
        raise
    except _DAMAGE as err:
        reason = " ".join(str(err).split())[:120]
        msg = f"{path}: expected a zip, cannot read it ({reason}): fetch it again"
        raise DataError(msg) from None


def _check_count(path: Path, count: int, cap: int) -> None:
    if count > cap:
        raise DataError(f"{path}: {count} members, more than {cap}")


def read_zip(
    path: Path, *, suffix: str, max_members: int, max_member_bytes: int, max_bytes: int
) -> Mapping[str, bytes]:
    """The members whose names end in ``suffix``, by name, in memory.

    Names are keys only: nothing is written to the disk, so a hostile one leads nowhere.

    Args:
        path: The zip.
        suffix: Members with other names are not read.
        max_members: Most members that the zip may have.
        max_member_bytes: Most bytes, unpacked, of one member.
        max_bytes: Most bytes, unpacked, of all members together.

    Raises:
        DataError: Not a zip, damaged, encrypted, packed in another way, or over a cap.
    """
    contents: dict[str, bytes] = {}
    total = 0
    with open_zip(path, max_members=max_members) as archive:
        for member in archive.infolist():
            if member.filename.endswith(suffix):
                content = read_member(archive, member, max_member_bytes)
                total += len(content)
                if total > max_bytes:
                    raise DataError(f"{path}: unpacks to more than {max_bytes} bytes")
                contents[member.filename] = content
    return contents


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, cap: int) -> bytes:
    """One member of a zip that `open_zip` has opened.

    Raises:
        DataError: Encrypted, packed in another way, or more than ``cap`` bytes unpacked.
    """
    where = f"{archive.filename}: {member.filename!r}"
    if member.flag_bits & 1 or member.compress_type not in _METHODS:
        raise DataError(f"{where}: encrypted, or packed in an unusual way: pack it again")
    with archive.open(member) as file:
        # One byte more than allowed, as the size that the zip states may be a lie.
        content = file.read(cap + 1)
    if len(content) > cap:
        raise DataError(f"{where}: unpacks to more than {cap} bytes")
    return content
