"""Time and peak memory of every engine, and of its peers, on logistic regression of 10⁵ weights.

All take turns in one process for the time; the ratios to the fastest peer are taken turn by turn.
Memory is the peak of each contender in a fresh process, above what it held after a run of T = 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import final

import memory
import torch
from contenders import CASES, CONTENDERS, WEIGHTS, Case, CountStates, by_engine
from measuring import Verdict, print_verdicts

from bilevel_core import Checkpointed

PEERS = ("unroll by hand", "higher", "torchopt")
STATE = 4 * WEIGHTS  # bytes of float32
AGREE = 1e-3


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A contender at one T.

    Attributes:
        ms: median time of a run, in milliseconds.
        ratio: median ratio of its time to the fastest peer's in the same turn.
        peak: bytes at the peak, above those held before; None where the system does not tell.
        difference: ‖∇ - ∇'‖ / ‖∇'‖, where ∇' is the gradient of the unroll by hand.
    """

    case: str
    steps: int
    name: str
    ms: float
    ratio: float
    peak: int | None
    difference: float


def seconds(case: Case, name: str, steps: int) -> float:
    """Return the wall time of one run; what the runs before it left behind is collected first."""
    gc.collect()
    start = time.perf_counter()
    CONTENDERS[name].run(case, steps)
    return time.perf_counter() - start


def peak_memory(case_name: str, name: str, steps: int, threads: int) -> int | None:
    """Return the peak of resident bytes of a run, above those before it (Linux)."""
    torch.set_num_threads(threads)
    case, run = CASES[case_name](), CONTENDERS[name].run
    run(case, min(1, steps))
    return memory.peak_above(partial(run, case, steps))


def in_fresh_process(case_name: str, name: str, steps: int, threads: int) -> int | None:
    """Return `peak_memory` as a new interpreter measures it."""
    return memory.in_fresh_process(peak_memory, case_name, name, steps, threads)


def missing_peers() -> list[str]:
    """Return the peers that are not installed."""
    packages = {name: CONTENDERS[name].package for name in PEERS}
    return [
        n for n, package in packages.items() if package and not importlib.util.find_spec(package)
    ]


def measure(case_name: str, steps: int, options: argparse.Namespace) -> list[Row]:
    """Return a row for each contender that is wanted and installed, at one T."""
    case, missing = CASES[case_name](), missing_peers()
    wanted = {*PEERS, *(options.only or case.names)}
    names = [name for name in case.names if name in wanted and name not in missing]
    repeats = options.repeats
    difference = differences(case, names, steps)
    turns = [{name: seconds(case, name, steps) for name in names} for _ in range(repeats)]
    median = {name: statistics.median(turn[name] for turn in turns) for name in names}
    fastest = min((name for name in names if name in PEERS), key=median.__getitem__)
    return [
        Row(
            case=case_name,
            steps=steps,
            name=name,
            ms=1000 * median[name],
            ratio=statistics.median(turn[name] / turn[fastest] for turn in turns),
            peak=None
            if options.no_memory
            else in_fresh_process(case_name, name, steps, options.threads),
            difference=difference[name],
        )
        for name in names
    ]


def differences(case: Case, names: Sequence[str], steps: int) -> dict[str, float]:
    """Return how far each gradient is from that of the unroll by hand; it also warms up."""
    flat = {
        name: torch.cat([leaf.flatten() for leaf in CONTENDERS[name].run(case, steps)[1].values()])
        for name in names
    }
    reference = flat[PEERS[0]]
    return {
        name: float(
            torch.linalg.vector_norm(grad - reference) / torch.linalg.vector_norm(reference)
        )
        for name, grad in flat.items()
    }


def print_rows(rows: Sequence[Row]) -> None:
    """Print the rows of one case and T as a table."""
    print("\n| T | contender | ms | to the fastest peer | peak, MB | in states | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        peak = (
            ("–", "–") if row.peak is None else (f"{row.peak / 1e6:.0f}", f"{row.peak / STATE:.1f}")
        )
        note = "" if CONTENDERS[row.name].exact else " (by design)"
        print(
            f"| {row.steps} | {row.name} | {row.ms:.1f} | {row.ratio:.2f} | {peak[0]} | {peak[1]} "
            f"| {row.difference:.0e}{note} |",
            flush=True,
        )


def long_run(short: int, steps: int) -> list[Verdict]:
    """Judge `Checkpointed` at T = `steps` beside `Reverse` at T = `short`."""
    case, counted = CASES["many"](), CountStates(Checkpointed())
    by_engine(counted)(case, 1)
    before = seconds(case, "Reverse", short)
    start = time.perf_counter()
    by_engine(counted)(case, steps)
    ours = 1e3 * (time.perf_counter() - start) / steps
    stored = 1e3 * (before + seconds(case, "Reverse", short)) / 2 / short
    figure = f"{ours:.2f} ms a step to {stored:.2f} of Reverse at T = {short}: {ours / stored:.2f}x"
    return [
        Verdict(
            claim=f"Checkpointed at T = {steps} holds at most 40 states",
            met=counted.most <= 40,
            figure=f"{counted.most} arrays of a state's size, the adjoint's among them",
        ),
        Verdict(
            claim=f"Checkpointed at T = {steps} costs at most 4x Reverse's time a step",
            met=ours <= 4 * stored,
            figure=figure,
        ),
    ]


def agreement(rows: Sequence[Row]) -> Verdict:
    """Judge whether the exact contenders compute the same hypergradient."""
    worst = max((r for r in rows if CONTENDERS[r.name].exact), key=lambda r: r.difference)
    return Verdict(
        claim=f"every exact contender agrees to {AGREE:.0e}",
        met=worst.difference <= AGREE,
        figure=f"at most {worst.difference:.0e}: {worst.name}, T = {worst.steps}",
    )


def speed(rows: Sequence[Row], name: str, most: float) -> Verdict:
    """Judge an engine's time beside the fastest peer's, at every T."""
    ratios = {r.steps: r.ratio for r in rows if r.case == "many" and r.name == name}
    return Verdict(
        claim=f"{name} takes at most {most:g}x the time of the fastest peer",
        met=max(ratios.values()) <= most,
        figure=", ".join(f"{ratio:.2f} at T = {steps}" for steps, ratio in ratios.items()),
    )


def thrift(rows: Sequence[Row], steps: int) -> Verdict:
    """Judge the memory of `Reverse` beside that of the fastest peer."""
    claim = f"Reverse holds at most half of the fastest peer's memory at T = {steps}"
    here = {r.name: r for r in rows if r.case == "many" and r.steps == steps}
    if not here:
        return Verdict(claim=claim, met=None, figure="not run")
    fastest = min((here[n] for n in PEERS if n in here), key=lambda row: row.ms)
    ours, theirs = here["Reverse"].peak, fastest.peak
    if ours is None or theirs is None:
        return Verdict(claim=claim, met=None, figure="this system does not tell")
    figure = f"{ours / 1e6:.0f} MB to {theirs / 1e6:.0f} of {fastest.name}: {ours / theirs:.2f}"
    return Verdict(claim=claim, met=2 * ours <= theirs, figure=figure)


def flatness(rows: Sequence[Row]) -> Verdict:
    """Judge whether the memory of `Forward` grows with T."""
    claim = "Forward's memory is flat in T (within 10 %)"
    peaks = {r.steps: r.peak for r in rows if r.name == "Forward"}
    known = [peak for peak in peaks.values() if peak is not None]
    if len(known) < 2:
        return Verdict(claim=claim, met=None, figure="fewer than two T measured")
    figure = ", ".join(
        f"{peak / 1e6:.1f} MB at T = {steps}" for steps, peak in peaks.items() if peak
    )
    return Verdict(claim=claim, met=max(known) <= 1.1 * min(known), figure=figure)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100, 1000], help="values of T")
    parser.add_argument("--long", type=int, default=10_000, help="T of Checkpointed; 0: leave out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="T = 10 only, once: a smoke test")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these engines, and the peers")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.long, options.repeats = [10], 0, 1
    return options


def main() -> None:
    """Print a table for each case and T, then a line for each criterion."""
    options = parse()
    torch.set_num_threads(options.threads)
    missing = missing_peers()
    print(f"torch {torch.__version__}, {options.threads} threads, {options.repeats} repeats")
    print(f"{WEIGHTS} weights: a state is {STATE / 1e6:.1f} MB in float32")
    for name in missing:
        print(f"{name}: not installed")
    rows: list[Row] = []
    for case_name, make in CASES.items():
        print(f"\n{make().title}")
        for steps in options.steps:
            rows += (new := measure(case_name, steps, options))
            print_rows(new)
    verdicts = [
        agreement(rows),
        speed(rows, "Unrolled", 1.0),
        speed(rows, "Reverse", 1.5),
        thrift(rows, 1000),
        flatness(rows),
        *(long_run(max(options.steps), options.long) if options.long else []),
    ]
    print_verdicts(verdicts)
    if options.json:
        settings = {
            "torch": torch.__version__,
            "threads": options.threads,
            "repeats": options.repeats,
            "state_bytes": STATE,
            "missing": missing,
        }
        report = {"settings": settings, "rows": [asdict(row) for row in rows]}
        report["verdicts"] = [asdict(verdict) for verdict in verdicts]
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
