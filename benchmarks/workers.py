"""Sides that take turns, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

__all__ = ["Make", "answer", "worker"]

Make: TypeAlias = Callable[..., AbstractContextManager[Callable[[Any], Any]]]
"""Makes, in the process, what answers requests; a function of a module."""


@contextmanager
def worker(make: Make, *arguments: Any) -> Iterator[Connection]:
    """Start a process that answers requests with the function of `make(*arguments)`."""
    # A server to fork from would be sooner, but its socket needs a short path of temporary files.
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
    process.start()
    other.close()
    try:
        yield pipe
    finally:
        pipe.close()
        process.join()


def answer(pipe: Connection) -> Any:
    """Return the answer to the first request that was sent and not yet answered."""
    try:
        return pipe.recv()
    except EOFError:
        message = "error: a process of the benchmark ended: its own error stands above"
        raise SystemExit(message) from None


def _serve(pipe: Connection, make: Make, arguments: tuple[Any, ...]) -> None:
    with make(*arguments) as function:
        while True:
            try:
                request = pipe.recv()
            except EOFError:
                return
            pipe.send(function(request))
