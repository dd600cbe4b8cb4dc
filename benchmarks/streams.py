"""A stream of fresh tasks, one or some in every hyper-iteration: ours, the loop by hand, and peers.

All sides see the same tasks and take turns, block by block. Every value and gradient is compared
with that of the first side. In JAX the programs that were compiled are counted.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from measuring import (
    Verdict,
    device_of,
    make_parser,
    print_verdicts,
    ratio,
    take_turns,
    write_report,
)
from stream_sides import SIDES, STEPS, Step, prepare

from bilevel_models import keep_freed_memory

OURS = ("ours", "by hand")
AGREE = 2e-3
MOST = {
    ("torch", "sinusoid"): 1.2,
    ("torch", "omniglot"): 1.05,
    ("torch", "ridge"): 1.2,
    ("jax", "sinusoid"): 1.15,
    ("jax", "ridge"): 1.15,
}


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A side of one stream.

    Attributes:
        ms: median time of a hyper-iteration.
        ratio: median ratio of its time to ours in the same turn.
        difference: of value and norm of the gradient from the first side's, the largest.
        programs: compiled by JAX for all of it; None elsewhere.
    """

    framework: str
    problem: str
    side: str
    ms: float
    ratio: float
    difference: float
    programs: int | None


def block(step: Step, count: int) -> Callable[[], list[tuple[float, float]]]:
    """Return what takes the next `count` hyper-iterations of a stream whenever it is called."""
    position = 0

    def run() -> list[tuple[float, float]]:
        nonlocal position
        found = [step(k) for k in range(position, position + count)]
        position += count
        return found

    return run


def differences(steps: dict[str, Step]) -> dict[str, float]:
    """Return how far value and gradient are from those of the first side."""
    found = {side: [number for k in range(3) for number in step(k)] for side, step in steps.items()}
    first = next(iter(found.values()))
    return {
        side: max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(numbers, first, strict=True))
        for side, numbers in found.items()
    }


def measure(framework: str, problem: str, options: argparse.Namespace) -> list[Row]:
    """Return the rows of one stream."""
    steps = {
        side: make(problem)
        for side, make in SIDES[framework][problem].items()
        if side in OURS or importlib.util.find_spec(side.partition(",")[0])
    }
    count = options.count if problem != "omniglot" else max(1, options.count // 10)
    prepare(framework, problem, max(3, count * (options.repeats + 1)))
    apart = differences(steps)
    blocks = {side: block(step, count) for side, step in steps.items()}
    times = take_turns(blocks, options.repeats, torch.device("cpu"))
    return [
        Row(
            framework=framework,
            problem=problem,
            side=side,
            ms=sorted(times[side])[len(times[side]) // 2] / count,
            ratio=ratio(times, side, "ours"),
            difference=apart[side],
            programs=_programs(step),
        )
        for side, step in steps.items()
    ]


def _programs(step: Step) -> int | None:
    compiled = getattr(step, "compiled", None)
    return compiled._cache_size() if hasattr(compiled, "_cache_size") else None


def print_rows(rows: list[Row]) -> None:
    """Print one stream as a table."""
    first = rows[0]
    print(f"\n{first.framework}: {first.problem}, T = {STEPS[first.problem]}")
    print("| side | ms a hyper-iteration | to ours | difference | programs |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        programs = "" if row.programs is None else row.programs
        print(
            f"| {row.side} | {row.ms:.2f} | {row.ratio:.2f} | {row.difference:.0e} | {programs} |"
        )


def verdicts(rows: list[Row]) -> list[Verdict]:
    """Judge one stream."""
    sides, first = {row.side: row for row in rows}, rows[0]
    where, ours = f"{first.framework}, {first.problem}", sides["ours"]
    worst = max(rows, key=lambda row: row.difference)
    found = [
        Verdict(
            claim=f"{where}: all sides agree to {AGREE:.0e}",
            met=worst.difference <= AGREE,
            figure=f"at most {worst.difference:.0e}, {worst.side}",
        )
    ]
    most = MOST.get((first.framework, first.problem))
    if most is not None:
        beside = 1 / sides["by hand"].ratio
        claim = f"{where}: at most {most:g}x the loop by hand"
        found.append(Verdict(claim=claim, met=beside <= most, figure=f"{beside:.2f}"))
    peers = [row for row in rows if "hand" not in row.side and row.side != "ours"]
    if peers:
        fastest = min(peers, key=lambda row: row.ms)
        claim = f"{where}: at least as fast as the fastest peer"
        figure = f"{fastest.side} takes {fastest.ratio:.2f}x our time"
        found.append(Verdict(claim=claim, met=fastest.ratio >= 1, figure=figure))
    if ours.programs is not None:
        claim = f"{where}: one compilation"
        found.append(Verdict(claim=claim, met=ours.programs == 1, figure=f"{ours.programs}"))
    return found


def main() -> None:
    """Print a table for each stream, then a line for each criterion."""
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--count", type=int, default=50, help="hyper-iterations a turn")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these frameworks or problems")
    options = parser.parse_args()
    if options.quick:
        options.count, options.repeats = 2, 1
    if device_of(options) is None:
        return
    keep_freed_memory()
    rows: list[Row] = []
    judged: list[Verdict] = []
    for framework, problems in SIDES.items():
        if importlib.util.find_spec(framework) is None:
            print(f"\n{framework}: not installed")
            continue
        for problem in problems:
            if options.only and not {framework, problem} & set(options.only):
                continue
            rows += (new := measure(framework, problem, options))
            print_rows(new)
            judged += verdicts(new)
    print_verdicts(judged)
    write_report(options, rows, judged)


if __name__ == "__main__":
    main()
