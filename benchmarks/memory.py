"""The peak of memory of one call, in a process that has done nothing else (Linux)."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["in_fresh_process", "peak_above"]

T = TypeVar("T")
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"  # of bytes, from which glibc gives an array back when freed


def peak_above(function: Callable[[], Any]) -> int | None:
    """Return the peak of resident bytes during a call, above those held before it.

    None where the system does not tell. What should not count, such as imports, is to have
    happened before.
    """
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
        before = _high_water()
        function()
        return _high_water() - before
    except OSError:
        return None


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a new interpreter gets, in which large arrays go back when they are freed.

    Resident then means alive.
    """
    before = os.environ.get(THRESHOLD)
    os.environ[THRESHOLD] = "65536"
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        del os.environ[THRESHOLD]
        if before is not None:
            os.environ[THRESHOLD] = before


def _high_water() -> int:
    """Return the peak of this process's resident bytes since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
