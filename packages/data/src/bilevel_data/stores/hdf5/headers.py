"""Where an HDF5 file says what it holds: its superblock and object headers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import final

import numpy as np
from numpy.typing import NDArray

from bilevel_data.errors import DataError
from bilevel_data.stores.hdf5.checksums import lookup3

__all__ = [
    "DAMAGED",
    "NOWHERE",
    "SIGNATURE",
    "Bytes",
    "Message",
    "Part",
    "messages",
    "root_address",
]

DAMAGED = "truncated or damaged"
NOWHERE = (1 << 64) - 1
SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = 48
_CONTINUATION, _SHARED = 0x10, 0x02
_MOST_PARTS, _MOST_HEADER_BYTES = 8, 1 << 16


@final
class Bytes:
    """An open file of which no more is read than there is."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def take(self, at: int, count: int) -> bytes:
        """Bytes `at` to `at + count`.

        Raises:
            DataError: they are not all in the file.
        """
        if count > self.size - at:
            raise DataError(DAMAGED)
        self.file.seek(at)
        content = self.file.read(count)
        if len(content) < count:
            raise DataError(DAMAGED)
        return content

    def fill(self, at: int, array: NDArray[np.uint8]) -> None:
        """Read into all of an array.

        Raises:
            DataError: the file ends before.
        """
        self.file.seek(at)
        if self.file.readinto(array.data) < len(array):
            raise DataError(DAMAGED)

    def checked(self, at: int, count: int, signature: bytes) -> "Part":
        """The body of a part of `count` bytes that begins with a signature.

        Raises:
            DataError: it is not in the file, another part, or not what its checksum says.
        """
        content = self.take(at, count)
        stored = int.from_bytes(content[-4:], "little")
        if not content.startswith(signature) or lookup3(content[:-4]) != stored:
            raise DataError(DAMAGED)
        return Part(content[len(signature) : -4])


@final
class Part:
    """Bytes that are read from front to back, as little-endian numbers."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    @property
    def left(self) -> int:
        """How many bytes are not read yet."""
        return len(self.content) - self.at

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            DataError: there are fewer.
        """
        if count > self.left:
            raise DataError(DAMAGED)
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, count: int) -> int:
        """The next `count` bytes as a number without a sign."""
        return int.from_bytes(self.take(count), "little")

    def numbers(self, *counts: int) -> tuple[int, ...]:
        """The next numbers of so many bytes each."""
        return tuple(self.number(count) for count in counts)


@final
@dataclass(frozen=True)
class Message:
    """One entry of an object header: what kind it is, and its bytes."""

    kind: int
    content: bytes


def root_address(file: Bytes) -> int:
    """Where the root group is.

    Raises:
        DataError: the file was cut off, added to or damaged, or is of an older kind.
    """
    if file.take(8, 1)[0] not in (2, 3):
        raise DataError(
            "expected the HDF5 of a store, found another kind: HDF5, but not a store of this "
            "package"
        )
    part = file.checked(0, _SUPERBLOCK, SIGNATURE)
    *kinds, base, extension, end, root = part.numbers(1, 1, 1, 1, 8, 8, 8, 8)
    if kinds[1:] != [8, 8, 0] or base or extension != NOWHERE or end != file.size:
        raise DataError(DAMAGED)
    return root


def messages(file: Bytes, at: int) -> list[Message]:
    """The entries of the object header at an address.

    Raises:
        DataError: it is damaged, of an older version, or longer than that of any store.
    """
    found = []
    parts = [_first_part(file, at)]
    for part in parts:  # grows while it is read
        for message in _entries(part):
            if message.kind == _CONTINUATION:
                where, count = Part(message.content).numbers(8, 8)
                if len(parts) == _MOST_PARTS or not 8 <= count <= _MOST_HEADER_BYTES:
                    raise DataError(DAMAGED)
                parts.append(file.checked(where, count, b"OCHK"))
            else:
                found.append(message)
    return found


def _first_part(file: Bytes, at: int) -> Part:
    signature, version, flags = file.take(at, 4), *file.take(at + 4, 2)
    timed = 16 if flags & 0x20 else 0
    if signature != b"OHDR" or version != 2 or flags & ~0x23 or flags & 3 == 3:
        raise DataError("expected an object header as a store has it, found another kind")
    width = 1 << (flags & 3)
    count = int.from_bytes(file.take(at + 6 + timed, width), "little")
    if count > _MOST_HEADER_BYTES:
        raise DataError(DAMAGED)
    part = file.checked(at, 6 + timed + width + count + 4, b"OHDR")
    part.take(2 + timed + width)
    return part


def _entries(part: Part) -> Iterator[Message]:
    while part.left >= 4:  # less than the head of an entry is a gap
        kind, count, flags = part.numbers(1, 2, 1)
        content = part.take(count)
        if flags & _SHARED:
            raise DataError("refused, as a part of it is kept elsewhere: not a store")
        yield Message(kind, content)
