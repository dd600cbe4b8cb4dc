"""A machine in words that say nothing of where it is."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

__all__ = ["machine_name", "versions"]

CPUINFO = Path("/proc/cpuinfo")


def machine_name(device: str = "cpu", threads: int | None = None) -> str:
    """Return the processor, its cores, and the device if it is another one.

    Args:
        device: where was computed, such as `cpu` or `cuda:0`.
        threads: how many were used.
    """
    parts = [f"{os.cpu_count()} cores of {_processor()}, {platform.system()}"]
    if threads is not None:
        parts.append(f"{threads} thread{'s' * (threads != 1)}")
    if device.startswith("cuda"):
        known = torch.cuda.is_available()
        parts.insert(0, torch.cuda.get_device_name() if known else device)
    return ", ".join(parts)


def versions(python: str, torch_version: str, own: str | None = None) -> str:
    """Return the versions in one line."""
    words = [f"Python {python}", f"torch {torch_version}"]
    return ", ".join(words if own is None else [*words, f"bilevel {own}"])


def _processor() -> str:
    """Return the processor's model, or else its kind."""
    try:
        lines = CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), platform.machine())
