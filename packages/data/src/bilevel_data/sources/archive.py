"""Reading the members of a zip without unpacking it anywhere."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from bilevel_data.errors import DataError

__all__ = ["read_zip"]

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


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
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > max_members:
                raise DataError(f"{path}: {len(members)} members, more than {max_members}")
            for member in members:
                if member.filename.endswith(suffix):
                    content = _read_member(archive, member, max_member_bytes)
                    total += len(content)
                    if total > max_bytes:
                        raise DataError(f"{path}: unpacks to more than {max_bytes} bytes")
                    contents[member.filename] = content
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as err:
        reason = " ".join(str(err).split())[:120]
        msg = f"{path}: expected a zip, cannot read it ({reason}): fetch it again"
        raise DataError(msg) from None
    return contents


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, cap: int) -> bytes:
    where = f"{archive.filename}: {member.filename!r}"
    if member.flag_bits & 1 or member.compress_type not in _METHODS:
        raise DataError(f"{where}: encrypted, or packed in an unusual way: pack it again")
    with archive.open(member) as file:
        # One byte more than allowed, as the size that the zip states may be a lie.
        content = file.read(cap + 1)
    if len(content) > cap:
        raise DataError(f"{where}: unpacks to more than {cap} bytes")
    return content
