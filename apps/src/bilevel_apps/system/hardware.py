"""Threads, device and precision: what the machine has, and what was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bilevel_apps.errors import InputError

__all__ = ["choose_device", "choose_precision", "own_threads", "set_threads"]

MOST_THREADS = 1025


def set_threads(threads: int | None, *, sharers: int = 1) -> int:
    """Set and return the number of threads: as given, or all that the process may use.

    That is what OMP_NUM_THREADS says, where it says a number.

    Of several that share a machine (`sharers`), each takes at most its part of the cores: with more
    threads than cores all of them wait.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    part = max(1, (available or 1) // sharers)
    count = threads or _asked() or part
    if sharers > 1:
        count = min(count, part)
    torch.set_num_threads(count)
    return count


def _asked() -> int | None:
    """Return the number that OMP_NUM_THREADS has, which may be a list of them by depth."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and 0 < int(first) < MOST_THREADS else None


@contextmanager
def own_threads() -> Iterator[None]:
    """Give back the number of threads, which a run sets to its own when it is loaded."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        InputError: another name, or cuda was asked for and is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"`device`={name}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "`device`=cuda: no CUDA device is available here: use `device`=cpu or auto"
        )
    use_cuda = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision for `auto`: bfloat16 where the hardware computes in it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        native = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"
