"""`bilevel-train` and `bilevel-eval` as a user runs them, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

__all__ = ["Training", "evaluate", "per_cent", "text", "train"]

VALIDATION = re.compile(r"hyper-iteration (\d+): validation accuracy ([\d.]+)")


@final
@dataclass(frozen=True, kw_only=True)
class Training:
    """What was seen of a training.

    Attributes:
        seconds: wall time, from the start of the command to its end.
        processor: seconds of processor time.
        validations: seconds, hyper-iteration and accuracy in % of each.
    """

    seconds: float
    processor: float
    validations: tuple[tuple[float, int, float], ...]

    @property
    def best(self) -> tuple[float, int, float]:
        """The validation whose checkpoint is kept: the first of equals."""
        return max(self.validations, key=lambda found: found[2])


def train(preset: str, data: Path, out: Path, settings: Sequence[str], device: str) -> Training:
    """Run the training command, untracked, and wait for its end.

    Raises:
        SystemExit: it failed; with its last lines.
    """
    command = [sys.executable, "-m", "bilevel_apps.cli.train", "--preset", preset]
    command += ["--data", str(data), "--out", str(out), "--device", device]
    for setting in ("tracking.enabled=false", *settings):
        command += ["--set", setting]
    before, start = _processor_seconds(), time.perf_counter()
    lines: list[str] = []
    validations: list[tuple[float, int, float]] = []
    nowhere, seen = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, env=_env(), stdout=nowhere, stderr=seen, text=True) as process:
        for line in process.stderr or ():
            lines.append(line)
            if found := VALIDATION.match(line):
                at = time.perf_counter() - start
                validations.append((at, int(found[1]), float(found[2])))
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"error: the training in {out} failed:\n{''.join(lines[-5:])}")
    return Training(
        seconds=seconds,
        processor=_processor_seconds() - before,
        validations=tuple(validations),
    )


def evaluate(out: Path, *, episodes: int, device: str, way: int | None = None) -> dict[str, Any]:
    """Return what `bilevel-eval --json` says of a run; way: another than the run's.

    Raises:
        SystemExit: it failed; with its lines.
    """
    command = [sys.executable, "-m", "bilevel_apps.cli.evaluate", str(out), "--json"]
    command += ["--episodes", str(episodes), "--device", device]
    command += [] if way is None else ["--way", str(way)]
    done = subprocess.run(command, env=_env(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: the evaluation of {out} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def per_cent(entry: dict[str, Any]) -> tuple[float, float]:
    """Return the accuracy of a report, or of a part of it, and half its interval, in %."""
    return 100 * entry["accuracy"], 100 * entry["ci95"]


def text(score: Sequence[float]) -> str:
    """Return an accuracy and half its interval as a table has them."""
    return f"{score[0]:.2f} ± {score[1]:.2f}"


def _env() -> dict[str, str]:
    return os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}


def _processor_seconds() -> float:
    """Return what the processes that this one started, and that have ended, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
