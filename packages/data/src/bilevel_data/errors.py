"""The one error of this package."""

__all__ = ["DataError"]


class DataError(ValueError):
    """Refused input: a file, a folder, an option or a value.

    The message is one line: what was refused, what was expected, what was found and what to do.
    """
