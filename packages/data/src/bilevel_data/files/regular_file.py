"""Reading what somebody else made: a whole file, or what the system will not let us read."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bilevel_data.errors import DataError
from bilevel_data.files.limits import Limit

__all__ = ["read_plain", "reading"]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file, and say what to do, where the system refuses to read in the block.

    Args:
        path: what is read, unless the system names something else, such as a file in that folder.

    Raises:
        DataError: the block raised an `OSError`.
    """
    try:
        yield
    except OSError as err:
        reason = err.strerror or " ".join(str(err).split())[:120]
        msg = f"{err.filename or path}: cannot read it ({reason}): restore it, or make it readable"
        raise DataError(msg) from None


def read_plain(path: Path, limit: Limit, *, what: str, remedy: str) -> bytes:
    """All bytes of a plain file, if they are not too many.

    Args:
        path: the file. A pipe, on which reading would wait for ever, or a device is refused.
        limit: the most bytes.
        what: what was expected, such as `"a picture"`.
        remedy: what to do about another file.

    Raises:
        FileNotFoundError: there is none.
        DataError: it cannot be read, is not a plain file or has more bytes.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            msg = f"{path}: expected {what}, found something that is not a plain file: {remedy}"
            raise DataError(msg)
        limit.check(str(path), status.st_size, remedy)
        with path.open("rb") as file:
            return file.read(status.st_size)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise DataError(f"{path}: cannot read {what} ({err.strerror}): {remedy}") from None
