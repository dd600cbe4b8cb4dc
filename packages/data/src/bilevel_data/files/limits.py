"""The most that is taken of a file that somebody else made, and how to have more of it."""

import os
from dataclasses import dataclass
from typing import final

from bilevel_data.errors import DataError

__all__ = [
    "LIMITS",
    "MAX_ARCHIVE_BYTES",
    "MAX_CHECKPOINT_BYTES",
    "MAX_CONFIG_BYTES",
    "MAX_ENTRIES",
    "MAX_PICTURE_BYTES",
    "MAX_PIXELS",
    "MAX_RECORD_BYTES",
    "MAX_SPLIT_BYTES",
    "Limit",
]


@final
@dataclass(frozen=True, kw_only=True)
class Limit:
    """A number that a file of somebody else may not exceed.

    Attributes:
        variable: the environment variable that gives another number.
        default: the number without it.
        meaning: what is counted.
    """

    variable: str
    default: int
    meaning: str

    def get(self) -> int:
        """The number that counts now.

        Raises:
            DataError: the variable is not a positive whole number.
        """
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.default
        if not (text.isascii() and text.isdecimal()) or len(text) > 18 or not int(text):
            msg = f"{self.variable}: expected a positive whole number, found {ascii(text)[:40]}"
            raise DataError(f"{msg}: correct or unset it")
        return int(text)

    def check(self, where: str, found: int, remedy: str) -> None:
        """Refuse a file with more than this.

        Raises:
            DataError: it has; the message begins with `where` and ends with what to do.
        """
        most = self.get()
        if found > most:
            raise DataError(
                f"{where}: {found} {self.meaning}, more than {most}: {remedy}, or set "
                f"{self.variable} if you trust it"
            )


MAX_PIXELS = Limit(variable="BILEVEL_MAX_PIXELS", default=64_000_000, meaning="pixels")
MAX_PICTURE_BYTES = Limit(
    variable="BILEVEL_MAX_PICTURE_BYTES", default=256 << 20, meaning="bytes of a picture"
)
MAX_ENTRIES = Limit(
    variable="BILEVEL_MAX_ENTRIES", default=200_000, meaning="files in a folder or zip"
)
MAX_ARCHIVE_BYTES = Limit(
    variable="BILEVEL_MAX_ARCHIVE_BYTES", default=64 << 30, meaning="bytes of pictures"
)
MAX_SPLIT_BYTES = Limit(
    variable="BILEVEL_MAX_SPLIT_BYTES", default=16 << 30, meaning="bytes of images in a split"
)
MAX_CHECKPOINT_BYTES = Limit(
    variable="BILEVEL_MAX_CHECKPOINT_BYTES", default=2 << 30, meaning="bytes of a checkpoint"
)
MAX_CONFIG_BYTES = Limit(
    variable="BILEVEL_MAX_CONFIG_BYTES", default=1 << 15, meaning="bytes of settings"
)
MAX_RECORD_BYTES = Limit(
    variable="BILEVEL_MAX_RECORD_BYTES", default=64 << 20, meaning="bytes of a record"
)
LIMITS = (
    MAX_PIXELS,
    MAX_PICTURE_BYTES,
    MAX_ENTRIES,
    MAX_ARCHIVE_BYTES,
    MAX_SPLIT_BYTES,
    MAX_CHECKPOINT_BYTES,
    MAX_CONFIG_BYTES,
    MAX_RECORD_BYTES,
)
