"""Looking at the HDF5 file of a store without trusting it.

Everything is asked of the file's structure first (kind of link, storage, filters, type, shape
against the size of the file), and pixels are read only after that.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from bilevel_data.errors import DataError
from bilevel_data.stores.hdf5.checksums import fletcher32
from bilevel_data.stores.hdf5.datasets import Dataset, parse_dataset
from bilevel_data.stores.hdf5.headers import (
    DAMAGED,
    NOWHERE,
    SIGNATURE,
    Bytes,
    Message,
    Part,
    messages,
    root_address,
)

__all__ = ["Dataset", "Group", "dataset", "group", "names", "open_hdf5", "read_array"]

_REMEDY = "prepare the store again"
_MAKE = "give a file made by `bilevel-data prepare`"
_LINK_INFO, _LINK = 0x02, 0x06
# An object header may say these too; they change nothing of what is read.
_HARMLESS = {0x00, 0x05, 0x0A, 0x12, 0x15}


@final
@dataclass(frozen=True)
class Group:
    """A group: the file, and where the object of each name is (nowhere for other links)."""

    file: Bytes
    members: dict[str, int]


@contextmanager
def open_hdf5(path: Path) -> Iterator[Group]:
    """The root group of a file, closed again at the end; errors inside name the file.

    Raises:
        DataError: missing, empty, not a plain file, not HDF5, truncated or damaged.
    """
    _check_file(path)
    try:
        with path.open("rb") as opened:
            file = Bytes(opened)
            yield _group(file, root_address(file))
    except DataError as err:
        advised = any(remedy in str(err) for remedy in (_REMEDY, "install the", _MAKE))
        raise DataError(f"{path}: {err}" if advised else f"{path}: {err}: {_REMEDY}") from None
    except OSError as err:
        raise DataError(f"{path}: cannot read this store ({err.strerror}): {_MAKE}") from None


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
        plain = stat.S_ISREG(status.st_mode)  # opening a pipe would wait for ever
        head = _head(path) if plain else b""
    except OSError as err:
        raise DataError(f"{path}: cannot read this store ({err.strerror}): {_MAKE}") from None
    if not plain:
        raise DataError(
            f"{path}: expected a store, found something that is not a plain file: {_MAKE}"
        )
    if not head:
        raise DataError(f"{path}: expected a store, found an empty file: {_REMEDY}")
    if head != SIGNATURE:
        raise DataError(f"{path}: expected a store (HDF5), found another kind of file: {_MAKE}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(SIGNATURE))


def names(parent: Group, expected: set[str]) -> None:
    """Check that a group holds exactly the expected names.

    Raises:
        DataError: a name is missing or there is one more.
    """
    found = set(parent.members)
    if found != expected:
        seen = ascii(sorted(found)) if len(found) < 100 else f"{len(found)} names"
        raise DataError(
            f"expected {sorted(expected)} in it, found {seen[:200]}: not a store: {_MAKE}"
        )


def group(parent: Group, name: str) -> Group:
    """A group below another.

    Raises:
        DataError: missing, a link to elsewhere, or not a group.
    """
    with _about(name):
        return _group(parent.file, _member(parent, name))


def dataset(parent: Group, name: str, dtype: type[np.generic], rank: int) -> Dataset:
    """A data set of plain numbers in chunks of this file, of a size that the file can hold.

    Args:
        parent: the group that holds it.
        name: its name.
        dtype: expected type of its numbers, `np.uint8`, `np.int64` or `np.float32`.
        rank: expected number of axes.

    Raises:
        DataError: one of these does not hold.
    """
    with _about(name):
        found = messages(parent.file, _member(parent, name))
        parts = {message.kind: message.content for message in found}
        if _LINK_INFO in parts:
            raise DataError("expected a data set, found a group: not a store")
        relevant = [message.kind for message in found if message.kind not in _HARMLESS]
        if len(set(relevant)) < len(relevant):
            raise DataError(DAMAGED)
        return parse_dataset(parent.file, parts, np.dtype(dtype), rank)


@contextmanager
def _about(name: str) -> Iterator[None]:
    try:
        yield
    except DataError as err:
        raise DataError(f"{name}: {err}") from None


def _member(parent: Group, name: str) -> int:
    address = parent.members.get(name)
    if address is None:
        raise DataError("missing: not a store, or damaged")
    if address == NOWHERE:
        raise DataError("refused, as it is a link that leads elsewhere")
    return address


def _group(file: Bytes, at: int) -> Group:
    found = messages(file, at)
    info = [message.content for message in found if message.kind == _LINK_INFO]
    if len(info) != 1:
        raise DataError("expected a group, found something else: not a store")
    members: dict[str, int] = {}
    for name, address in (_link(message) for message in found if message.kind == _LINK):
        if name in members:
            raise DataError(DAMAGED)
        members[name] = address
    if info[0][2:10] != NOWHERE.to_bytes(8, "little"):
        raise DataError("expected a few names in it, found many: not a store of this package")
    return Group(file, members)


def _link(message: Message) -> tuple[str, int]:
    part = Part(message.content)
    version, flags = part.numbers(1, 1)
    if version != 1:
        raise DataError(DAMAGED)
    hard = not (flags & 8 and part.number(1))
    part.take(8 * bool(flags & 4) + bool(flags & 16))
    name = part.take(part.number(1 << (flags & 3))).decode("utf-8", "replace")
    return name, part.number(8) if hard else NOWHERE


def read_array(file: Bytes, found: Dataset, *, checked: bool = True) -> NDArray[np.generic]:
    """All of a data set, in its shape, read-only.

    Args:
        file: where it is.
        found: the data set.
        checked: compare each chunk with its checksum; leave that out where a hash of all of it is
            compared anyway.

    Raises:
        DataError: the file has become shorter, or a checksum differs.
    """
    array = np.empty(found.shape, dtype=found.dtype.newbyteorder("<"))
    flat = array.reshape(-1).view(np.uint8)
    for k, address in enumerate(found.addresses):
        piece = flat[k * found.chunk_bytes : (k + 1) * found.chunk_bytes]
        file.fill(address, piece)
        if checked:
            _check_chunk(file, address, piece, found.chunk_bytes)
    array.flags.writeable = False
    return array


def _check_chunk(file: Bytes, address: int, piece: NDArray[np.uint8], size: int) -> None:
    rest = np.frombuffer(file.take(address + len(piece), size - len(piece)), dtype=np.uint8)
    stored = int.from_bytes(file.take(address + size, 4), "little")
    if fletcher32(np.concatenate([piece, rest]) if len(rest) else piece) != stored:
        raise DataError(f"a chunk does not match its checksum: {DAMAGED}")
