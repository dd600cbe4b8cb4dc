"""What sampling and loading cost a hyper-iteration, and what they cost with a common loader.

Each side feeds the training loop: wait for a meta-batch as images on the device, hypergradient,
outer step. A turn gives each side a few hyper-iterations after one that is not counted.

fed             the same meta-batch again and again: no sampling
no thread       `EpisodeLoader`, each batch made when it is asked for
thread          `EpisodeLoader` as in training: batches made ahead in a thread
dataloader      plain_loaders.py: images in memory, no workers, and with worker processes
h5py rows       plain_loaders.py: each image read from a plain HDF5 file, no workers
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias, final

import h5py
import torch
from generated import generate, store_with
from measuring import (
    Verdict,
    device_of,
    finish,
    make_parser,
    milliseconds,
    precisions,
    ratio,
)
from plain_loaders import ImagesInMemory, RowsOfFile, meta_batches

from bilevel_apps.config import Config, parse_config
from bilevel_apps.runs.build import make_learner
from bilevel_apps.system.processes import ALONE
from bilevel_apps.training.data_parallel import Shard, shared_hypergradient
from bilevel_data import EpisodeLoader, EpisodeSampler, EpisodeSpec
from bilevel_meta.episodes import Episodes, to_device
from bilevel_meta.learner import Learner

LIMIT = 0.03
FED, THREAD = "fed", "thread"
Supply: TypeAlias = Callable[[int], AbstractContextManager[Iterator[Episodes]]]
"""Makes an iterator over so many meta-batches, on the device."""
Step: TypeAlias = Callable[[Episodes], None]


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its meta-batch of 5-way 1-shot episodes, and how much to make up of its data.

    Attributes:
        made: classes and images a class, where no store is given.
        small: the same for --quick.
    """

    model: str
    shape: tuple[int, int, int]
    meta_batch: int
    rotations: bool
    made: tuple[int, int]
    small: tuple[int, int]


CASES = {
    "omniglot": Case(
        model="omniglot-net",
        shape=(28, 28, 1),
        meta_batch=32,
        rotations=True,
        made=(1100, 20),
        small=(50, 20),
    ),
    "c4l": Case(
        model="c4l",
        shape=(84, 84, 3),
        meta_batch=4,
        rotations=False,
        made=(64, 100),
        small=(8, 20),
    ),
}


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A side of a case, medians.

    Attributes:
        wait_ms: from asking for a meta-batch to having it as images on the device.
        ms: of a whole hyper-iteration.
        share: of the wait in the hyper-iteration.
        over_fed: of a hyper-iteration, to one that waits for nothing; the thread's work counts.
    """

    case: str
    precision: str
    side: str
    wait_ms: float
    ms: float
    share: float
    over_fed: float


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """What is loaded, and where to."""

    sampler: EpisodeSampler
    meta_batch: int
    device: torch.device
    rows: Path
    """A plain HDF5 file of the same images."""

    @contextmanager
    def own(self, prefetch: int, steps: int) -> Iterator[Iterator[Episodes]]:
        """Load as training does."""
        way = self.sampler.spec.way
        loader = EpisodeLoader(
            Shard(whole=self.sampler, processes=ALONE),
            meta_batch=self.meta_batch,
            steps=steps,
            prefetch=prefetch,
        )
        with loader as batches:
            yield (to_device(batch, way, self.device) for batch in batches)

    @contextmanager
    def again(self, steps: int) -> Iterator[Iterator[Episodes]]:
        """Give one meta-batch, made beforehand, every time."""
        with self.own(0, 1) as batches:
            episodes = next(batches)
        yield (episodes for _ in range(steps))

    @contextmanager
    def plain(self, how: str, workers: int, steps: int) -> Iterator[Iterator[Episodes]]:
        """Load with torch's DataLoader, from memory or from rows of a file."""
        split = self.sampler.split
        images = RowsOfFile(self.rows) if how == "rows" else ImagesInMemory(split.images)
        batches = meta_batches(
            images,
            split,
            self.sampler.spec,
            rotations=self.sampler.rotations,
            meta_batch=self.meta_batch,
            steps=steps,
            workers=workers,
            device=self.device,
        )
        with closing(batches):  # ends the workers
            yield batches


def supplies(source: Source, workers: int) -> dict[str, Supply]:
    """Return the sides."""
    sides: dict[str, Supply] = {
        FED: source.again,
        "no thread": partial(source.own, 0),
        THREAD: partial(source.own, 2),
        "dataloader": partial(source.plain, "memory", 0),
        "h5py rows": partial(source.plain, "rows", 0),
    }
    if workers:
        sides[f"dataloader, {workers} workers"] = partial(source.plain, "memory", workers)
    return sides


def make_step(config: Config, shape: tuple[int, int, int], device: torch.device) -> Step:
    """Return a function that takes one outer step on a meta-batch."""
    task = make_learner(config, shape, device)
    optimizer = torch.optim.AdamW(
        [p for p in task.parameters() if p.requires_grad], lr=config.train.lr
    )
    return partial(_outer_step, task, optimizer)


def _outer_step(task: Learner, optimizer: torch.optim.Optimizer, episodes: Episodes) -> None:
    shared_hypergradient(task, episodes, ALONE, stop=False)
    optimizer.step()


def block(supply: Supply, step: Step, count: int, device: torch.device) -> tuple[float, float]:
    """Return the mean wait and the mean time of `count` hyper-iterations, after one more."""
    waited = worked = 0.0
    with supply(count + 1) as batches:
        for number in range(count + 1):
            wait, episodes = milliseconds(partial(next, batches), device)
            work, _ = milliseconds(partial(step, episodes), device)
            if number:
                waited, worked = waited + wait, worked + work
    return waited / count, (waited + worked) / count


def measure(case: Case, source: Source, precision: str, options: argparse.Namespace) -> list[Row]:
    """Return the rows of a case, printed."""
    config = parse_config(
        {
            "precision": precision,
            "model": {"name": case.model},
            "train": {"lr": 1e-5},
        },
        "benchmark",
    )
    step = make_step(config, case.shape, source.device)
    sides = supplies(source, options.workers)
    waits: dict[str, list[float]] = {side: [] for side in sides}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(options.repeats + 1):
        for side, supply in sides.items():
            wait, whole = block(supply, step, options.each, source.device)
            if turn or options.quick:
                waits[side].append(wait)
                times[side].append(whole)
    rows = [
        Row(
            case=case.model,
            precision=precision,
            side=side,
            wait_ms=statistics.median(waits[side]),
            ms=statistics.median(times[side]),
            share=statistics.median(
                wait / whole for wait, whole in zip(waits[side], times[side], strict=True)
            ),
            over_fed=ratio(times, side, FED),
        )
        for side in sides
    ]
    for r in rows:
        print(
            f"| {r.case} | {r.precision} | {r.side} | {r.wait_ms:.2f} | {r.ms:.1f} "
            f"| {100 * r.share:.2f} % | {r.over_fed:.3f} |",
            flush=True,
        )
    return rows


def make_source(case: Case, folder: Path, options: argparse.Namespace) -> Source:
    """Return a case's episodes, from the user's store or made up."""
    store = store_with(options.data, "train", case.shape)
    if store is None:
        sizes = case.small if options.quick else case.made
        path = folder / f"{case.model}.h5"
        store = generate(path, {"train": sizes}, case.shape, turned=case.rotations)
    split = store.load("train")
    rows = folder / f"{case.model}-rows.h5"
    with h5py.File(rows, "w") as file:
        # In one piece, as h5py writes it by default: the store's chunks suit reading all at once.
        file.create_dataset("images", data=split.images)
    spec = EpisodeSpec(way=5, shot=1, query=15)
    return Source(
        sampler=EpisodeSampler(split, spec, seed=0, rotations=case.rotations),
        meta_batch=max(1, case.meta_batch // 8) if options.quick else case.meta_batch,
        device=torch.device(options.device),
        rows=rows,
    )


def judge(rows: list[Row]) -> list[Verdict]:
    """Return, for each case, whether what training does keeps the backbone waiting."""
    return [
        Verdict(
            claim=f"{r.case}, {r.precision}: sampling and loading are under "
            f"{100 * LIMIT:.0f} % of a hyper-iteration",
            met=r.share < LIMIT,
            figure=f"waits {100 * r.share:.2f} %; {r.over_fed:.3f} × a hyper-iteration that is fed",
        )
        for r in rows
        if r.side == THREAD
    ]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = make_parser(__doc__, repeats=7)
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="stores with train splits")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--each", type=int, default=4, help="hyper-iterations a side and turn")
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.each, options.workers = 0, 1, 0
    return options


def main() -> None:
    """Print a row for each case and side, then a line for each criterion."""
    options = parse()
    device = device_of(options)
    if device is None:
        return
    print("\n| case | precision | side | wait, ms | hyper-iteration, ms | share | over fed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows: list[Row] = []
    for name in options.cases:
        with TemporaryDirectory() as folder:
            source = make_source(CASES[name], Path(folder), options)
            for precision in precisions(options):
                rows += measure(CASES[name], source, precision, options)
    finish(options, rows, judge(rows))


if __name__ == "__main__":
    main()
