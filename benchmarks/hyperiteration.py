"""The cost of a hyper-iteration, beside the bare backbone and the loops of few-shot libraries.

All sides see the same images and take turns; ratios are medians of the ratio turn by turn.

bare         one forward and backward pass of the backbone, at the best of several chunk sizes
ours         `HyperRepresentation.loss(episodes).backward()`, heads by T steps
solved       the same, heads at their optimum, whatever T is
loop, …      the loops of episode_loops.py, in float32

Bare, ours and solved run in the machine's best precision and in float32. Every side has a process
of its own, because `keep_freed_memory`, which our command lines call, holds for a whole process:
these three have it, the loops have it with --keep-memory.

The last table is of `heads.closed_form`, whose cost should hardly know T.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, final

import torch
from closed_form import ClosedRow, closed_form_rows, flatness, print_closed
from episode_loops import LOOPS, hyper_iteration, stock_network
from measuring import (
    Times,
    Verdict,
    device_of,
    finish,
    make_parser,
    milliseconds,
    precisions,
    ratio,
)
from torch import Tensor
from workers import answer, worker

from bilevel_meta.episodes import Episodes
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_models import EACH_SET, Encoder, create_model, keep_freed_memory
from bilevel_models.registry import list_models

OWN = ("bare", "ours", "solved")
OVER_STEPS = 1.1  # what heads at their optimum may cost, in hyper-iterations of T = 5


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """A meta-batch of 1-shot episodes with 15 query images a class, and what is asked of it.

    Attributes:
        over_bare: T to the most that ours may cost, in bare passes.
        over_peers: T to the least that the fastest peer costs, in ours.
    """

    title: str
    model: str
    channels: int
    size: int
    batch: int
    over_bare: dict[int, float]
    over_peers: dict[int, float]
    way: int = 5


CASES = {
    "omniglot": Case(
        title="Omniglot net, 32 episodes of 5-way 1-shot",
        model="omniglot-net",
        channels=1,
        size=28,
        batch=32,
        over_bare={5: 1.08, 256: 1.15},
        over_peers={5: 2.5, 64: 5.0},
    ),
    "c4l": Case(
        title="C4L at 84×84, 4 episodes of 5-way 1-shot",
        model="c4l",
        channels=3,
        size=84,
        batch=4,
        over_bare={5: 1.08, 256: 1.15},
        over_peers={5: 5.0, 64: 5.0},
    ),
    # The loops know only plain stacks of convolutions.
    "rn": Case(
        title="RN at 84×84, 2 episodes of 5-way 1-shot",
        model="rn",
        channels=3,
        size=84,
        batch=2,
        over_bare={},
        over_peers={},
    ),
}


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a process runs."""

    case: Case
    side: str
    precision: str
    threads: int
    device: str
    keep_memory: bool
    tries: int

    @property
    def label(self) -> str:
        """What tells it from the others of a case."""
        return f"{self.side} {self.precision}"


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A side at one T, in milliseconds and in medians of ratios turn by turn.

    Attributes:
        over_bare: to the bare pass of its own precision.
        over_ours: to ours, in the machine's best precision.
        over_ours_float32: to ours, in float32.
    """

    case: str
    steps: int
    side: str
    precision: str
    ms: float
    over_bare: float
    over_ours: float
    over_ours_float32: float


@contextmanager
def make_side(setting: Setting) -> Iterator[Callable[[int], tuple[float, float]]]:
    """Yield a function of T that runs one hyper-iteration, or pass: milliseconds and the loss."""
    torch.set_num_threads(setting.threads)
    if setting.keep_memory:
        keep_freed_memory()
    device = torch.device(setting.device)
    run = _side(setting, device)
    yield lambda steps: milliseconds(partial(run, steps), device)


def _side(setting: Setting, device: torch.device) -> Callable[[int], float]:
    case = setting.case
    torch.manual_seed(0)
    backbone = create_model(case.model, channels=case.channels, image_size=case.size)
    episodes = _episodes(case, device)
    steps = None if setting.side == "solved" else 5
    model = HyperRepresentation(backbone, steps=steps, bfloat16=setting.precision == "bfloat16")
    if setting.side in LOOPS:
        return partial(
            _loop, setting.side, model.to(device), stock_network(backbone).to(device), episodes
        )
    model.to(memory_format=torch.channels_last).to(device)
    if setting.side == "ours":
        return partial(_ours, model, episodes)
    if setting.side == "solved":
        return lambda _steps: _ours(model, episodes, None)
    images = torch.cat((episodes.support, episodes.query), dim=1)
    each, count = images.shape[1], images[:, :, 0, 0, 0].numel()
    sizes = {each // 8, each, 2 * each, 4 * each, count} if setting.tries > 1 else {each}
    return _best_chunks(model.encoder, images, sizes, setting.tries)


def _episodes(case: Case, device: torch.device) -> Episodes:
    labels = torch.arange(case.way, device=device).expand(case.batch, case.way).contiguous()
    return Episodes(
        support=_images(case.batch, case.way, case.channels, case.size).to(device),
        query=_images(case.batch, 15 * case.way, case.channels, case.size).to(device),
        support_labels=labels,
        query_labels=labels.repeat_interleave(15, dim=1),
        way=case.way,
    )


def _images(*shape: int) -> Tensor:
    """Return what a loader gives: channels last, (batch, n, channels, size, size)."""
    batch, n, channels, size = shape
    return torch.rand(batch, n, size, size, channels).movedim(-1, -3)


def _loop(
    side: str, model: HyperRepresentation, network: torch.nn.Module, episodes: Episodes, steps: int
) -> float:
    network.zero_grad()
    model.zero_grad()
    return hyper_iteration(
        network, LOOPS[side][0], episodes, steps=steps, lr=model.log_lr, scale=model.log_scale
    )


def _ours(learner: HyperRepresentation, episodes: Episodes, steps: int | None) -> float:
    learner.steps = steps
    learner.zero_grad()
    loss = learner.loss(episodes)
    loss.backward()
    return float(loss.detach())


def _best_chunks(
    encoder: Encoder, images: Tensor, sizes: Iterable[int], tries: int
) -> Callable[[int], float]:
    """Return the bare pass, forward and backward chunk by chunk, at its fastest chunk size."""
    device = images.device

    def bare(size: int, steps: int) -> float:
        del steps
        encoder.backbone.zero_grad()
        for chunk in images.flatten(0, 1).split(size):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=encoder.bfloat16):
                h = encoder.backbone(chunk.contiguous(memory_format=torch.channels_last), EACH_SET)
            h.backward(torch.ones_like(h))
        return 0.0

    def cost(size: int) -> float:
        return min(milliseconds(partial(bare, size, 0), device)[0] for _ in range(tries))

    return partial(bare, min(sorted(sizes), key=cost))


def compare(case: Case, options: argparse.Namespace) -> list[Row]:
    """Return the rows of a case, printed as they come."""
    settings = _settings(case, options)
    rows: list[Row] = []
    with ExitStack() as stack:
        pipes = {s.label: stack.enter_context(worker(make_side, s)) for s in settings}
        for steps in options.steps:
            times = measure(pipes, steps, options.repeats)
            new = [_row(times, setting, settings, steps) for setting in settings]
            print_rows(new)
            rows += new
    return rows


def _settings(case: Case, options: argparse.Namespace) -> list[Setting]:
    """Return the sides of a case: ours first in the best precision, then in float32."""
    both = dict.fromkeys((*precisions(options), "float32"))
    sides = [(side, precision) for precision in both for side in OWN]
    if case.model != "rn":
        sides += [(s, "float32") for s in options.sides if s in LOOPS and s not in missing()]
    return [
        Setting(
            case=replace(case, batch=max(1, case.batch // 8)) if options.quick else case,
            side=side,
            precision=precision,
            threads=options.threads,
            device=options.device,
            keep_memory=side in OWN or options.keep_memory,
            tries=1 if options.quick else 4,
        )
        for side, precision in sides
    ]


def missing() -> list[str]:
    """Return the loops whose package is not installed."""
    return [n for n, (_, package) in LOOPS.items() if package and not _installed(package)]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def measure(pipes: dict[str, Connection], steps: int, repeats: int) -> dict[str, list[float]]:
    """Return each side's times; the first turn is not counted."""
    times: dict[str, list[float]] = {label: [] for label in pipes}
    losses: dict[str, float] = {}
    for turn in range(repeats + 1):
        for label, pipe in pipes.items():
            pipe.send(steps)
            elapsed, losses[label] = answer(pipe)
            if turn:
                times[label].append(elapsed)
    ours = losses["ours float32"]
    apart = {
        s: abs(x / ours - 1) for s, x in losses.items() if s.split()[0] not in ("bare", "solved")
    }
    if wrong := {side: d for side, d in apart.items() if d > 0.02}:
        raise SystemExit(f"error: losses differ from ours at T = {steps} (relatively): {wrong}")
    return times


def _row(times: Times, setting: Setting, settings: Sequence[Setting], steps: int) -> Row:
    def to(side: str, precision: str) -> float:
        return ratio(times, setting.label, f"{side} {precision}")

    return Row(
        case=setting.case.model,
        steps=steps,
        side=setting.side,
        precision=setting.precision,
        ms=statistics.median(times[setting.label]),
        over_bare=to("bare", setting.precision),
        over_ours=to("ours", settings[0].precision),
        over_ours_float32=to("ours", "float32"),
    )


def print_rows(rows: Sequence[Row]) -> None:
    """Print rows as parts of a table."""
    for r in rows:
        print(
            f"| {r.case} | {r.steps} | {r.side} | {r.precision} | {r.ms:.1f} | {1000 / r.ms:.2f} "
            f"| {r.over_bare:.2f} | {r.over_ours:.2f} | {r.over_ours_float32:.2f} |",
            flush=True,
        )


def judge(rows: Sequence[Row], closed: Sequence[ClosedRow]) -> list[Verdict]:
    """Return what holds of the issue's criteria, in their order."""
    cases = [case for case in CASES.values() if any(r.case == case.model for r in rows)]
    verdicts = [
        near_bare(rows, case, steps, most)
        for case in cases
        for steps, most in case.over_bare.items()
    ]
    verdicts += [
        beyond_peers(rows, case, steps, least)
        for case in cases
        for steps, least in case.over_peers.items()
    ]
    verdicts += [near_steps(rows, case) for case in cases]
    return [*verdicts, flatness(closed)]


def near_bare(rows: Sequence[Row], case: Case, steps: int, most: float) -> Verdict:
    """Judge ours beside the bare pass of the same precision; the best precision decides."""
    found = [r for r in rows if (r.case, r.steps, r.side) == (case.model, steps, "ours")]
    return Verdict(
        claim=f"{case.model}, T = {steps}: at most {most} × the bare backbone",
        met=found[0].over_bare <= most if found else None,
        figure=", ".join(f"{r.over_bare:.2f} in {r.precision}" for r in found) or "T not run",
    )


def near_steps(rows: Sequence[Row], case: Case) -> Verdict:
    """Judge heads at their optimum beside T = 5, in the best precision."""
    found = [r for r in rows if (r.case, r.steps, r.side) == (case.model, 5, "solved")]
    return Verdict(
        claim=f"{case.model}, heads at their optimum: at most {OVER_STEPS} × T = 5",
        met=found[0].over_ours <= OVER_STEPS if found else None,
        figure=f"{found[0].over_ours:.2f}" if found else "T = 5 not run",
    )


def beyond_peers(rows: Sequence[Row], case: Case, steps: int, least: float) -> Verdict:
    """Judge ours, in the best precision, beside the fastest peer that is installed."""
    claim = f"{case.model}, T = {steps}: at least {least} × faster than the fastest peer"
    found = [r for r in rows if (r.case, r.steps) == (case.model, steps) and r.side in LOOPS]
    if not found:
        return Verdict(claim=claim, met=None, figure="T or peers not run")
    fastest = min(found, key=lambda row: row.ms)
    figure = (
        f"{fastest.over_ours:.2f} × of {', '.join(r.side for r in found)}: {fastest.side} is the "
        f"fastest; float32 against float32 {fastest.over_ours_float32:.2f} ×"
    )
    return Verdict(claim=claim, met=fastest.over_ours >= least, figure=figure)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = make_parser(__doc__, repeats=11)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 64, 256], help="values of T")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), help="default: rn on GPUs only")
    parser.add_argument("--sides", nargs="+", choices=(*OWN, *LOOPS), help="default: all")
    parser.add_argument("--keep-memory", action="store_true", help="the loops keep freed memory")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.repeats = [5], 1
    options.cases = options.cases or [c for c in CASES if c != "rn" or options.device == "cuda"]
    options.sides = options.sides or ([*OWN, "loop"] if options.quick else [*OWN, *LOOPS])
    return options


def main() -> None:
    """Print a row for each case, T and side, then a line for each criterion."""
    options = parse()
    device = device_of(options)
    if device is None:
        return
    print(f"loops in float32{', keeping memory' * options.keep_memory}")
    for side in missing():
        print(f"{side}: not installed")
    print("\n| case | T | side | precision | ms | a second | over bare | over ours | float32 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows: list[Row] = []
    for name in options.cases:
        if CASES[name].model in list_models():
            rows += compare(CASES[name], options)
        else:
            print(f"{name}: no such model here")
    closed = closed_form_rows(device, options.repeats)
    print_closed(closed)
    everything: list[Any] = [*rows, *closed]
    finish(options, everything, judge(rows, closed))


if __name__ == "__main__":
    main()
