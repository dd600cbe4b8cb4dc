"""Several threads for many small pieces of work, each of which is too small for two."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_threads"]

MOST = 8  # threads: more wait for the interpreter's lock

T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T], R], pieces: Iterable[T], threads: int) -> Iterator[R]:
    """Yield the result of each piece, in order, from threads in which torch computes with one.

    So a result does not depend on how many there are. An error of a piece is raised in its turn.

    Args:
        work: torch calls mostly, which let the interpreter go.
        pieces: taken as they are needed, one more than there are threads at once.
        threads: how many; with 1 the work is done here, with torch's own number of threads.
    """
    threads = min(threads, MOST)
    if threads < 2:
        yield from map(work, pieces)
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting: deque[Future[R]] = deque()
            for piece in pieces:
                waiting.append(pool.submit(work, piece))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(before)  # new threads of others would take the number from here
