"""What the benchmarks share: options, a clock, turns, ratios, criteria, and how a run ends."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import torch

from bilevel_apps.system.hardware import choose_precision

__all__ = [
    "Times",
    "Verdict",
    "add_line",
    "device_of",
    "finish",
    "make_parser",
    "milliseconds",
    "precisions",
    "print_verdicts",
    "ratio",
    "read_lines",
    "synchronise",
    "take_turns",
    "write_report",
]

Times: TypeAlias = Mapping[str, Sequence[float]]
"""What each side took, turn by turn."""

WORDS = {True: "met", False: "missed", None: "not measured"}


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a claim holds in this run: `met` is None where it was not measured."""

    claim: str
    met: bool | None
    figure: str


def make_parser(description: str | None, *, repeats: int | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all have; repeats None: nothing is repeated."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="turns that are counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small, once")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def device_of(options: argparse.Namespace) -> torch.device | None:
    """Set the threads and return the device; None, after a line and a report, if it is missing."""
    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device is available here")
        write_report(options, [], [_on_gpu(None)])
        return None
    device = torch.device(options.device)
    print(", ".join(f"{key} {value}" for key, value in _settings(options).items()))
    return device


def precisions(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the precision asked for, or the machine's best; on a GPU float32 as well."""
    best = choose_precision(options.precision, torch.device(options.device))
    both = options.precision == "auto" and options.device == "cuda" and best != "float32"
    return (best, "float32") if both else (best,)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the wall time of one call and what it returned."""
    synchronise(device)
    start = time.perf_counter()
    value = function()
    synchronise(device)
    return 1000 * (time.perf_counter() - start), value


def take_turns(
    sides: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Return each side's times, one after the other in each turn; the first turn warms up."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side, function in sides.items():
            elapsed, _ = milliseconds(function, device)
            if turn:
                times[side].append(elapsed)
    return times


def ratio(times: Times, side: str, to: str) -> float:
    """Return the median of the ratios of two sides' times, turn by turn."""
    return statistics.median(a / b for a, b in zip(times[side], times[to], strict=True))


def finish(options: argparse.Namespace, rows: Sequence[Any], verdicts: Sequence[Verdict]) -> None:
    """Print a line for each criterion, and write the report if one was asked for."""
    verdicts = [*verdicts, _on_gpu(options.device == "cuda")]
    print_verdicts(verdicts)
    write_report(options, rows, verdicts)


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print a line for each criterion."""
    print("\nCriteria, in this run:")
    for verdict in verdicts:
        print(f"- {WORDS[verdict.met]}: {verdict.claim} ({verdict.figure})")


def write_report(
    options: argparse.Namespace, rows: Sequence[Any], verdicts: Sequence[Verdict], **more: Any
) -> None:
    """Write settings, rows (dataclasses) and verdicts to the file of --json, if it was given."""
    if options.json:
        report = {
            "settings": _settings(options) | more,
            "rows": [asdict(row) for row in rows],
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def read_lines(path: Path | None) -> list[dict[str, Any]]:
    """Return the rows of a file that has one a line; none where there is no file yet."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def add_line(path: Path | None, row: dict[str, Any]) -> None:
    """Add a row to such a file, if one is kept."""
    if path:
        with path.open("a", encoding="utf-8") as file:
            print(json.dumps(row), file=file)


def _on_gpu(here: bool | None) -> Verdict:
    """Say whether the tables are those of a GPU; None: one was asked for and is missing."""
    figures = {
        None: "no CUDA device is available here",
        False: "--device cuda",
        True: _settings(argparse.Namespace(device="cuda"))["machine"] if here else "",
    }
    return Verdict(claim="these tables on a GPU", met=here or None, figure=figures[here])


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    if options.device == "cuda" and torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    else:
        machine = _processor()
    given = {key: value for key, value in vars(options).items() if isinstance(value, (int, float))}
    return {"machine": machine, "torch": torch.__version__, "device": options.device} | given


def _processor() -> str:
    """Return the processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
