"""What an HDF5 data set is and where its chunks are, in the one form that a store has."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import final

import numpy as np

from bilevel_data.errors import DataError
from bilevel_data.stores.hdf5.headers import DAMAGED, NOWHERE, Bytes, Part

__all__ = ["Dataset", "parse_dataset"]

_SPACE, _TYPE, _EXTERNAL, _LAYOUT, _FILTERS = 0x01, 0x03, 0x07, 0x08, 0x0B
_CHECKSUM_ALONE = bytes((2, 1, 3, 0, 0, 0, 0, 0))
_SUM_BYTES = 4
_MOST_CHUNKS = 200_000  # a store's chunks have half a mebibyte or more, where there are several
_CHUNKED, _ONE_FILTERED, _SINGLE, _FIXED_ARRAY = 2, 2, 1, 3
_STORAGE = "refused, as its storage is not chunks of this file"


@final
@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Numbers in chunks that follow one another along the first axis.

    Attributes:
        shape: its shape.
        dtype: type of its numbers.
        rows: how many entries of the first axis a chunk has; the last one may be part empty.
        addresses: where each chunk begins in the file; its checksum follows it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    rows: int
    addresses: tuple[int, ...]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, without its checksum."""
        return self.dtype.itemsize * self.rows * prod(self.shape[1:])


def parse_dataset(
    file: Bytes, parts: Mapping[int, bytes], dtype: np.dtype[np.generic], rank: int
) -> Dataset:
    """A data set from the entries of its header, by kind.

    Raises:
        DataError: it has another type, number of axes, storage or filters, or claims more than the
            file holds.
    """
    if _EXTERNAL in parts or not {_SPACE, _TYPE, _LAYOUT} <= parts.keys():
        raise DataError(_STORAGE)
    _check_type(parts[_TYPE], dtype)
    shape = _shape(parts[_SPACE], rank)
    layout = Part(parts[_LAYOUT])
    version, kind = layout.numbers(1, 1)
    if version not in (4, 5) or kind != _CHUNKED:
        raise DataError(_STORAGE)
    if parts.get(_FILTERS) != _CHECKSUM_ALONE:
        raise DataError("refused, as its filters are not the checksum (fletcher32) alone")
    flags, axes, width = layout.numbers(1, 1, 1)
    if axes != rank + 1:
        raise DataError(_STORAGE)
    *chunk, item = layout.numbers(*[width] * axes)
    _check_room(file, dtype, shape, chunk)
    if item != dtype.itemsize or not chunk[0] or (*chunk[1:],) != shape[1:]:
        raise DataError(_STORAGE)
    count = -(-shape[0] // chunk[0])
    if count > _MOST_CHUNKS:
        raise DataError(f"{count} chunks, more than {_MOST_CHUNKS}: not a store")
    stored = dtype.itemsize * prod(chunk) + _SUM_BYTES
    addresses = _addresses(file, layout, flags, count, stored)
    return Dataset(shape=shape, dtype=dtype, rows=chunk[0], addresses=addresses)


def _check_type(content: bytes, dtype: np.dtype[np.generic]) -> None:
    size, real = dtype.itemsize, dtype.kind == "f"
    # The class is in the low half of the first byte. Little-endian, no padding, all bits in use.
    if real:  # float32 of IEEE 754: where its sign, exponent and mantissa are
        plain = bytes((0x20, 31, 0, 4, 0, 0, 0, 0, 0, 32, 0, 23, 8, 0, 23, 127, 0, 0, 0))
    else:
        sign = 8 * (dtype.kind == "i")
        plain = bytes((sign, 0, 0)) + size.to_bytes(4, "little") + bytes((0, 0, 8 * size, 0))
    if not content or content[0] & 0xF != real or content[1:] != plain:
        raise DataError(f"expected numbers of type {dtype}, found another type")


def _shape(content: bytes, rank: int) -> tuple[int, ...]:
    part = Part(content)
    version, axes, growing, kind = part.numbers(1, 1, 1, 1)
    if version != 2 or axes != rank or growing > 1 or kind > 1:
        raise DataError(f"expected {rank} axes, found another number of them")
    return part.numbers(*[8] * rank)


def _check_room(
    file: Bytes, dtype: np.dtype[np.generic], shape: tuple[int, ...], chunk: list[int]
) -> None:
    most = dtype.itemsize * max(prod(shape), prod(chunk))
    if most > file.size:
        claim = f"claims {most} bytes of data, more than this file of {file.size} bytes holds"
        raise DataError(f"{claim}: damaged")


def _addresses(file: Bytes, layout: Part, flags: int, count: int, stored: int) -> tuple[int, ...]:
    index = layout.number(1)
    if index == _SINGLE and flags == _ONE_FILTERED and count == 1:
        size, skipped, address = layout.numbers(8, 4, 8)
        found = [(address, size, skipped)]
    elif index == _FIXED_ARRAY and not flags:
        page_bits, address = layout.numbers(1, 8)
        found = _fixed_array(file, address, page_bits, count)
    else:
        raise DataError(_STORAGE)
    if any(entry[0] == NOWHERE for entry in found):
        raise DataError(f"claims more than this file of {file.size} bytes holds: damaged")
    if any(entry[1:] != (stored, 0) or entry[0] + stored > file.size for entry in found):
        raise DataError(DAMAGED)
    return tuple(entry[0] for entry in found)


def _fixed_array(file: Bytes, at: int, page_bits: int, count: int) -> list[tuple[int, int, int]]:
    """(address, bytes, filters left out) of each chunk, from the file's table of them."""
    if at == NOWHERE:
        raise DataError(f"claims more than this file of {file.size} bytes holds: damaged")
    version, client, width, bits, length, block = file.checked(at, 28, b"FAHD").numbers(
        1, 1, 1, 1, 8, 8
    )
    own = (version, client, bits, length) == (0, 1, page_bits, count)
    if not own or not 13 <= width <= 20 or not 1 <= bits <= 24:
        raise DataError(DAMAGED)
    head, page = 14, 1 << bits
    pages = -(-count // page) if count > page else 0
    body = (pages + 7) // 8 if pages else count * width
    found = file.checked(block, head + body + 4, b"FADB")
    if found.numbers(1, 1, 8) != (0, 1, at):
        raise DataError(DAMAGED)
    tables, place = [found], block + head + body + 4
    if pages:
        tables = []
        for first in range(0, count, page):
            size = min(page, count - first) * width + 4
            tables.append(file.checked(place, size, b""))
            place += size
    entry = (8, width - 12, 4)
    return [
        (address, size, skipped)
        for table in tables
        for address, size, skipped in (table.numbers(*entry) for _ in range(table.left // width))
    ]
