"""How the cost of a hyper-iteration grows with T, way, shot, the meta-batch and the processes.

The network is Omniglot's, episodes have 15 query images a class, and each table changes one thing
of the base case: T = 5, 5-way 1-shot, 8 episodes. All settings take turns; ratios to the base case
are medians of the ratio turn by turn.

The processes are connected as under torchrun, over gloo, and share each meta-batch; N of them have
the N-th part of the threads each, so that with --threads 2 two have one thread each.

Memory is the peak of a hyper-iteration in a fresh process, above what it held after T = 1.
"""

from __future__ import annotations

import argparse
import os
import socket  # noqa: TID251  (to find a free port of this machine)
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, TypeAlias, final

import torch
from measuring import (
    Verdict,
    device_of,
    finish,
    make_parser,
    precisions,
    ratio,
    take_turns,
)
from memory import in_fresh_process, peak_above
from workers import answer, worker

from bilevel_apps.system.processes import ALONE, Processes, connected
from bilevel_apps.training.data_parallel import shared_hypergradient
from bilevel_meta.episodes import Episodes
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_models import create_model, keep_freed_memory

QUERY = 15
GROWTH = 1.05  # of memory, from the smallest T to any other: room for T small matrices


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """A hyper-iteration."""

    steps: int = 5
    way: int = 5
    shot: int = 1
    meta_batch: int = 8

    @property
    def images(self) -> int:
        """How many go through the backbone."""
        return self.meta_batch * self.way * (self.shot + QUERY)


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A setting beside the base case.

    Attributes:
        changed: what was changed of the base case, and to what.
        ratio: of the times.
        ratio_per_image: of the times divided by the number of images.
    """

    precision: str
    changed: str
    images: int
    ms: float
    ratio: float
    ratio_per_image: float


@final
@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """Several processes beside one; `ratio` is of the times."""

    precision: str
    meta_batch: int
    processes: int
    threads_each: int
    ms: float
    ratio: float


@final
@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """The peak of a hyper-iteration, in bytes; None where the system does not tell."""

    precision: str
    steps: int
    peak: int | None


Table: TypeAlias = dict[str, Setting]


def tables(options: argparse.Namespace) -> Table:
    """Return the settings, the base case first and only once."""
    base = Setting()
    found = {f"T = {n}": replace(base, steps=n) for n in options.steps}
    found |= {f"{n}-way": replace(base, way=n) for n in options.ways}
    found |= {f"{n}-shot": replace(base, shot=n) for n in options.shots}
    found |= {f"{n} episodes": replace(base, meta_batch=n) for n in options.meta_batches}
    return {"base": base} | {name: s for name, s in found.items() if s != base}


def make_learner(precision: str, device: torch.device) -> HyperRepresentation:
    """Return the learner of all settings, T = 0."""
    torch.manual_seed(0)
    backbone = create_model("omniglot-net", channels=1, image_size=28)
    learner = HyperRepresentation(backbone, steps=0, bfloat16=precision == "bfloat16")
    return learner.to(memory_format=torch.channels_last).to(device)


def run(learner: HyperRepresentation, episodes: Episodes) -> float:
    """Make one hypergradient; return the loss."""
    return shared_hypergradient(learner, episodes, ALONE, stop=False).loss


def make_episodes(setting: Setting, device: torch.device) -> Episodes:
    """Return random images, channels last, and their labels."""
    torch.manual_seed(0)
    batch, way = setting.meta_batch, setting.way

    def images(each: int) -> torch.Tensor:
        return torch.rand(batch, way * each, 28, 28, 1).movedim(-1, -3).to(device)

    labels = torch.arange(way, device=device).expand(batch, way)
    return Episodes(
        support=images(setting.shot),
        query=images(QUERY),
        support_labels=labels.repeat_interleave(setting.shot, dim=1),
        query_labels=labels.repeat_interleave(QUERY, dim=1),
        way=way,
    )


def growth(precision: str, options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Return the rows of all tables, printed."""
    task, settings = make_learner(precision, device), tables(options)
    sides = {
        name: partial(run, task.varied(steps=setting.steps), make_episodes(setting, device))
        for name, setting in settings.items()
    }
    times = take_turns(sides, options.repeats, device)
    print("\n| precision | changed | images | ms | over base | over base, an image |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for name, setting in settings.items():
        over = ratio(times, name, "base")
        row = Row(
            precision=precision,
            changed=name,
            images=setting.images,
            ms=statistics.median(times[name]),
            ratio=over,
            ratio_per_image=over * settings["base"].images / setting.images,
        )
        print(
            f"| {precision} | {name} | {row.images} | {row.ms:.1f} | {row.ratio:.2f} "
            f"| {row.ratio_per_image:.2f} |"
        )
        rows.append(row)
    return rows


@contextmanager
def make_member(
    processes: Processes, threads: int, port: int, precision: str, setting: Setting
) -> Iterator[Callable[[None], float]]:
    """Yield what runs one process's part of a hyper-iteration and returns the whole's loss."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    each = setting.meta_batch // processes.size
    whole = make_episodes(setting, torch.device("cpu"))
    part = slice(processes.rank * each, (processes.rank + 1) * each)
    episodes = Episodes(
        support=whole.support[part],
        query=whole.query[part],
        support_labels=whole.support_labels[part],
        query_labels=whole.query_labels[part],
        way=whole.way,
    )
    task = make_learner(precision, torch.device("cpu")).varied(steps=setting.steps)
    with connected(processes):
        yield lambda _: shared_hypergradient(task, episodes, processes, stop=False).loss


def start_group(
    stack: ExitStack, size: int, threads: int, precision: str, setting: Setting
) -> list[Connection]:
    """Start so many processes that share the threads; one pipe to each."""
    port = free_port()
    members = [
        ALONE if size == 1 else Processes(rank=r, size=size, local_rank=r, local_size=size)
        for r in range(size)
    ]
    each = max(1, threads // size)
    return [
        stack.enter_context(worker(make_member, member, each, port, precision, setting))
        for member in members
    ]


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def together(pipes: Sequence[Connection]) -> tuple[float, float]:
    """Return the milliseconds of one shared hyper-iteration, and its loss."""
    start = perf_counter()
    for pipe in pipes:
        pipe.send(None)
    losses = [answer(pipe) for pipe in pipes]
    return 1000 * (perf_counter() - start), losses[0]


def groups(precision: str, meta_batch: int, options: argparse.Namespace) -> list[GroupRow]:
    """Return how one process compares with several, printed."""
    setting = Setting(meta_batch=meta_batch)
    times: dict[str, list[float]] = {f"{size}": [] for size in options.processes}
    losses: dict[str, float] = {}
    with ExitStack() as stack:
        pipes = {
            f"{size}": start_group(stack, size, options.threads, precision, setting)
            for size in options.processes
        }
        for turn in range(options.repeats + 1):
            for size, members in pipes.items():
                elapsed, losses[size] = together(members)
                if turn:
                    times[size].append(elapsed)
    first = f"{options.processes[0]}"
    if any(abs(loss / losses[first] - 1) > 1e-3 for loss in losses.values()):
        raise SystemExit(f"error: losses differ with the number of processes: {losses}")
    rows = [
        GroupRow(
            precision=precision,
            meta_batch=meta_batch,
            processes=size,
            threads_each=max(1, options.threads // size),
            ms=statistics.median(times[f"{size}"]),
            ratio=ratio(times, f"{size}", first),
        )
        for size in options.processes
    ]
    for r in rows:
        print(
            f"| {precision} | {meta_batch} | {r.processes} | {r.threads_each} | {r.ms:.1f} "
            f"| {r.ratio:.2f} |"
        )
    return rows


def peak(precision: str, steps: int, threads: int, device_name: str) -> int | None:
    """Return the peak of one hyper-iteration of the base case at T = `steps`."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    task, episodes = make_learner(precision, device), make_episodes(Setting(), device)
    run(task.varied(steps=1), episodes)
    task.steps = steps
    if device.type != "cuda":
        return peak_above(partial(run, task, episodes))
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(task, episodes)
    return torch.cuda.max_memory_allocated(device) - before


def peaks(precision: str, options: argparse.Namespace) -> list[MemoryRow]:
    """Return the peak of each T, printed."""
    print("\n| precision | T | peak, MB |\n| --- | --- | --- |")
    rows = []
    for steps in options.steps:
        found = in_fresh_process(peak, precision, steps, options.threads, options.device)
        rows.append(MemoryRow(precision=precision, steps=steps, peak=found))
        text = "not told" if found is None else f"{found / 1e6:.1f}"
        print(f"| {precision} | {steps} | {text} |", flush=True)
    return rows


def flatness(rows: Sequence[MemoryRow]) -> Verdict:
    """Judge whether memory grows with T."""
    claim = "memory does not grow with T"
    known = {
        r.steps: r.peak for r in rows if r.peak is not None and r.precision == rows[0].precision
    }
    if len(known) < 2:
        return Verdict(claim=claim, met=None, figure="fewer than two T measured")
    figure = ", ".join(f"{size / 1e6:.1f} MB at T = {steps}" for steps, size in known.items())
    return Verdict(
        claim=claim, met=max(known.values()) <= GROWTH * known[min(known)], figure=figure
    )


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = make_parser(__doc__, repeats=9)
    numbers = partial(parser.add_argument, type=int, nargs="+")
    numbers("--steps", default=[1, 5, 16, 64, 256, 1024], help="values of T")
    numbers("--ways", default=[5, 20, 60])
    numbers("--shots", default=[1, 5])
    numbers("--meta-batches", default=[4, 8, 16, 32])
    numbers("--processes", default=[1, 2])
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.steps, options.ways = 1, [1, 64], [5, 20]
        options.meta_batches = [4]
    return options


def main() -> None:
    """Print the tables, then a line for each criterion."""
    options = parse()
    device = device_of(options)
    if device is None:
        return
    if device.type == "cpu":
        keep_freed_memory()
    rows: list[Any] = []
    memory: list[MemoryRow] = []
    for precision in precisions(options):
        rows += growth(precision, options, device)
        memory += peaks(precision, options)
    if device.type == "cpu":
        print("\n| precision | episodes | processes | threads each | ms | over one |")
        print("| --- | --- | --- | --- | --- | --- |")
        for meta_batch in sorted({min(options.meta_batches), max(options.meta_batches)}):
            rows += groups(precisions(options)[0], meta_batch, options)
    finish(options, [*rows, *memory], [flatness(memory)])


if __name__ == "__main__":
    main()
