"""The two ways in which a command fails; the command lines turn them into one line and a status."""

__all__ = ["InputError", "RunError"]


class InputError(ValueError):
    """The user's input cannot be used: exit status 2. The message says what to do."""


class RunError(RuntimeError):
    """The input was fine and the work failed: exit status 1. The message says what is kept."""
