"""The file that HDF5 writes a store to, which never tells HDF5 that the disk failed.

HDF5 is not made for failing writes: it forgets them where a data set is closed, keeps the file open
with what it could not write, and can end the process with a segmentation fault. So a failure is
kept here, everything after it is dropped, and whoever writes the store asks for it.
"""

import io
from pathlib import Path
from types import TracebackType
from typing import Self, final

__all__ = ["SteadyFile"]


@final
class SteadyFile:
    """A new file for h5py's file-object driver; leaving the `with` block raises its failure.

    Args:
        path: the file, which must not exist.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("x+b", buffering=0)
        self._failure: BaseException | None = None

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            if error is None or isinstance(error, (OSError, RuntimeError)):
                self.check()  # HDF5 may have stumbled over the consequences: this is the cause

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as files do."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Say where, as files do."""
        return self._file.tell()

    def write(self, content: memoryview) -> int:
        """Write all of it, or keep the failure; every write after a failure is dropped."""
        size = rest = len(content)
        try:
            while rest and self._failure is None:
                rest -= self._file.write(content[size - rest :]) or 0
        except BaseException as failure:
            self._failure = failure
        return size

    def readinto(self, buffer: memoryview) -> int:
        """Read as much as is asked for; zeros where the file ends or cannot be read."""
        size = rest = len(buffer)
        try:
            while rest and (got := self._file.readinto(buffer[size - rest :])):
                rest -= got
        except BaseException as failure:
            self._failure = self._failure or failure
        buffer[size - rest :] = bytes(rest)
        return size

    def truncate(self, size: int) -> int:
        """Cut or extend the file, or keep the failure."""
        try:
            if self._failure is None:
                self._file.truncate(size)
        except BaseException as failure:
            self._failure = failure
        return size

    def flush(self) -> None:
        """Nothing is buffered."""
