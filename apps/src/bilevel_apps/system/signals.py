"""Ctrl-C and SIGTERM as a request that a loop acts on when it can, or gives up at."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["Interrupted", "stop_request", "taken_by"]

STDERR = 2


class Interrupted(KeyboardInterrupt):
    """A signal ended work that is to be done again: nothing of it is kept."""


@contextmanager
def stop_request(*, tell: bool = True) -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into an entry of the yielded list, for the loop to act on.

    A second one interrupts at once. `tell` says on stderr that the first one was heard.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        if not tell:
            return
        # Not print: the signal may have come in the middle of one, which must not be entered twice.
        with suppress(OSError):
            os.write(STDERR, "finishing this hyper-iteration and saving …\n".encode())

    with taken_by(note):
        yield received


@contextmanager
def taken_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function take Ctrl-C and SIGTERM, also where Ctrl-C was ignored from the start."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
