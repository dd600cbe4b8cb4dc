"""The two ways in which a command fails; the command lines turn them into one line and a status.

A message names a parameter between backticks, alone or with its value: `steps`, `split`=val. A
command line writes the flag or the key in its place.
"""

from __future__ import annotations

import re

__all__ = ["PARAMETER", "InputError", "RunError"]

PARAMETER = re.compile(r"`([a-z_]+)`(=?)")


class InputError(ValueError):
    """The user's input cannot be used: exit status 2. The message says what to do."""

    @property
    def parameter(self) -> str | None:
        """The first parameter that the message names; None where it names none."""
        found = PARAMETER.search(str(self))
        return None if found is None else found[1]


class RunError(RuntimeError):
    """The input was fine and the work failed: exit status 1. The message says what is kept."""
