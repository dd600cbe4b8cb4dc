"""Looking at an HDF5 file without trusting it.

Everything is asked of the file's structure first (kind of link, storage, filters, type, shape
against the size of the file), and pixels are read only after that. HDF5 can otherwise be made to
open other files of the machine (links, external and virtual storage), to load plug-ins (filters),
to hang (variable-length types) or to allocate what a header claims.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TypeAlias

import h5py  # type: ignore[import-untyped]
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s, h5t, h5z
from numpy.typing import NDArray

from bilevel_data.errors import DataError

__all__ = ["Dataset", "dataset", "group", "names", "open_hdf5", "read_array"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_REMEDY = "prepare the store again"
_MAKE = "give a file made by `bilevel-data prepare`"

Dataset: TypeAlias = h5d.DatasetID


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5g.GroupID]:
    """The root group of a file, closed again at the end; h5py's errors become a `DataError`.

    Raises:
        DataError: Missing, empty, not a plain file, not HDF5, truncated or damaged.
    """
    _check_file(path)
    try:
        # A store never changes once it has its name, so it needs no lock (some network file
        # systems have none).
        with h5py.File(path, "r", locking=False) as file:
            yield h5g.open(file.id, b"/")
    except DataError as err:
        raise DataError(f"{path}: {err}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as err:
        reason = " ".join(str(err).split())[:120]
        raise DataError(f"{path}: truncated or damaged: {_REMEDY} ({reason})") from None


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
    if head != _SIGNATURE:
        raise DataError(f"{path}: expected a store (HDF5), found another kind of file: {_MAKE}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_SIGNATURE))


def names(parent: h5g.GroupID, expected: set[str]) -> None:
    """Check that a group holds exactly the expected names.

    Raises:
        DataError: A name is missing or there is one more.
    """
    count = parent.get_num_objs()
    found = {name.decode("utf-8", "replace") for name in parent} if count < 100 else set()
    if found != expected:
        seen = sorted(found) if found else f"{count} names"
        raise DataError(f"expected {sorted(expected)} in it, found {seen}: not a store")


def group(parent: h5g.GroupID, name: str) -> h5g.GroupID:
    """A group below another.

    Raises:
        DataError: Missing, a link to elsewhere, or not a group.
    """
    found = _member(parent, name)
    if not isinstance(found, h5g.GroupID):
        raise DataError(f"{name}: expected a group, found something else: not a store")
    return found


def dataset(
    parent: h5g.GroupID, name: str, dtype: type[np.generic], rank: int, *, room: int
) -> Dataset:
    """A data set that is safe to read: its own storage, a plain number type, a possible size.

    Args:
        parent: The group that holds it.
        name: Its name.
        dtype: Expected type of its numbers, ``np.uint8`` or ``np.int64``.
        rank: Expected number of axes.
        room: Size of the whole file in bytes: it cannot hold more than that.

    Raises:
        DataError: One of these does not hold.
    """
    found = _member(parent, name)
    if not isinstance(found, h5d.DatasetID):
        raise DataError(f"{name}: expected a data set, found something else: not a store")
    _check_type(found, name, np.dtype(dtype), rank)
    _check_storage(found, name, room)
    return found


def _member(parent: h5g.GroupID, name: str) -> object:
    raw = name.encode()
    if raw not in parent:
        raise DataError(f"{name}: missing: not a store, or damaged")
    if parent.links.get_info(raw).type != h5l.TYPE_HARD:
        raise DataError(f"{name}: refused, as it is a link that leads elsewhere")
    return h5o.open(parent, raw)


def _check_type(found: Dataset, name: str, dtype: np.dtype[np.generic], rank: int) -> None:
    kind = found.get_type()
    plain = isinstance(kind, h5t.TypeIntegerID) and kind.get_size() == dtype.itemsize
    signed = plain and kind.get_sign() == h5t.SGN_2
    if not plain or signed != (dtype.kind == "i"):
        raise DataError(f"{name}: expected numbers of type {dtype}, found another type")
    space = found.get_space()
    simple = space.get_simple_extent_type() == h5s.SIMPLE
    if not simple or space.get_simple_extent_ndims() != rank:
        raise DataError(f"{name}: expected {rank} axes, found another number of them")


def _check_storage(found: Dataset, name: str, room: int) -> None:
    plan = found.get_create_plist()
    if plan.get_layout() != h5d.CHUNKED or plan.get_external_count():
        raise DataError(f"{name}: refused, as its storage is not chunks of this file")
    if [plan.get_filter(i)[0] for i in range(plan.get_nfilters())] != [h5z.FILTER_FLETCHER32]:
        raise DataError(f"{name}: refused, as its filters are not the checksum (fletcher32) alone")
    item = found.get_type().get_size()
    size, chunk = item * prod(found.shape), item * prod(plan.get_chunk())
    if max(size, chunk) > room or found.get_storage_size() < size:
        claim = f"{name}: claims {max(size, chunk)} bytes of data"
        raise DataError(f"{claim}, more than this file of {room} bytes holds: damaged")


def read_array(found: Dataset, dtype: type[np.generic]) -> NDArray[np.generic]:
    """All of a data set that `dataset` has let through, in its shape, read-only."""
    array = np.empty(found.shape, dtype=dtype)
    if array.size:
        found.read(h5s.ALL, h5s.ALL, array)
    array.flags.writeable = False
    return array
