"""How the processes of one command end: with one line, and alike."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from bilevel_apps.system.processes import Processes

__all__ = ["single_error_line"]

PATIENCE = 20.0  # seconds for the others to come to a refusal: they are importing the same modules


@contextmanager
def single_error_line(processes: Processes, *, debug: bool) -> Iterator[Callable[[str, int], None]]:
    """Silence all processes but the first; yields `report(line, status)` for an error.

    The process that fails first reports, whichever it is, because the others only notice that it
    has gone. The process is to end after the block, which ends with SystemExit: it ignores SIGTERM
    from then on, and leaves without taking the interpreter down.

    Args:
        processes: this one among those of the command.
        debug: silence nobody.
    """
    stderr = sys.stderr
    with ExitStack() as stack:
        if not processes.first and not debug:
            nowhere = stack.enter_context(Path("/dev/null").open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        signal.signal(signal.SIGTERM, _interrupt_unless_ending)
        # Not back to what it was: the process takes a while to end, and keeps its status.
        stack.callback(signal.signal, signal.SIGTERM, signal.SIG_IGN)
        leaving = _Leaving()
        atexit.register(leaving)  # the first to come is the last to go: others' handlers still run
        try:
            yield lambda line, status: _report(processes, line, status, stderr)
        except SystemExit as ending:
            leaving.status = ending.code if isinstance(ending.code, int) else 1
            raise


class _Leaving:
    """Leaves the process with its status, in the place of the interpreter's teardown.

    Where the processes did not take leave of one another, threads of gloo may still hold tensors,
    and end a process by SIGABRT that asks for the interpreter's lock while it is torn down.
    """

    status = 1

    def __call__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.status)


def _interrupt_unless_ending(_number: int, _frame: FrameType | None) -> None:
    """Leave a process alone that handles an error: it is ending, and may have to say why.

    torchrun sends SIGTERM to what is left of a command as soon as one of its processes has failed.
    """
    if sys.exc_info()[0] is None:
        raise KeyboardInterrupt


def _report(processes: Processes, line: str, status: int, stderr: TextIO) -> None:
    try:
        store = _store()
        if store.add("bilevel/reported", 1) == 1:
            print(line, file=stderr, flush=True)
        if status == 2:
            _meet(store, processes)
    except (RuntimeError, ValueError):  # the launcher is gone too: nobody else may speak
        print(line, file=stderr, flush=True)


def _meet(store: Any, processes: Processes) -> None:
    """Wait until all have refused: torchrun ends the others when one of them has ended."""
    store.add("bilevel/refused", 1)
    until = time.monotonic() + PATIENCE
    while store.add("bilevel/refused", 0) < processes.size and time.monotonic() < until:
        time.sleep(0.05)


def _store() -> Any:
    """Return what torchrun keeps for its processes to leave messages in."""
    from torch.distributed.rendezvous import rendezvous

    store, _rank, _size = next(rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
    return store
