"""The errors of this package."""

__all__ = ["DataError", "WriteError"]


class DataError(ValueError):
    """Refused input: a file, a folder, an option or a value.

    The message is one line: what was refused, what was expected, what was found and what to do.
    """


class WriteError(DataError):
    """The input was fine and the disk failed: what stood there before is untouched."""
