"""Memory that a training loop asks for again and again."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# The parameters' numbers in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30
_LARGEST_OF_OLD_VERSIONS = 2**25


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, and say whether it will.

    A pass through a network frees and asks for hundreds of megabytes of activations. By default
    glibc gives large blocks back to the system, which hands them out again page by page, each
    filled with zeros: a fifth to a half of the time of a pass on a CPU. The process then holds its
    peak until it ends. For a program's start, not for a library's: it changes the whole process,
    and the environment's MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ give way to it.

    Elsewhere than on Linux with glibc nothing happens.

    Source: The GNU C Library Reference Manual, section "Malloc Tunable Parameters".
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mapped = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(
        _MMAP_THRESHOLD, _LARGEST_OF_OLD_VERSIONS
    )
    return bool(mapped and mallopt(_TRIM_THRESHOLD, _LARGEST))
