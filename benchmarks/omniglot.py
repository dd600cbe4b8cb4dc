"""Every method on Omniglot by its paper's preset, for a few minutes of one core each.

Beside each accuracy, the one that the method should come to at its full length, and how much of
that length it had. CELLS says what differs from the presets: the length, the learning rate and the
precision, and for some the optimiser, the meta-batch or the inner steps. The checkpoint is the one
that validated best; test episodes: 600, with 15 queries a class, rotated copies as classes too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from commands import evaluate, per_cent, text, train
from measuring import add_line, make_parser, read_lines

from bilevel_apps.config.load import load_preset
from bilevel_apps.paper.published import published
from bilevel_models import Normalization

EPISODES = 600
MANY = 20
"""The other number of classes."""

RISE_AND_FALL = ("train.schedule=onecycle", "train.lr=3e-3")
"""For a short training a rate that rises and falls is better than the presets'."""

FEWER = ("train.meta_batch=8", *RISE_AND_FALL)
FEW = ("train.meta_batch=4", "train.query=5", *RISE_AND_FALL)
"""For what adapts the whole network: more steps of fewer episodes in the same time."""

SHORT = ("options.steps=3", "options.hidden=8")
"""For what is learned of a step by an LSTM: fewer and smaller ones."""


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """A training of a method.

    Attributes:
        method: as in the names of the presets.
        steps: of the short training, hyper-iterations.
        bars: the accuracy in % that trainings by others come to at full length, by the number of
            classes.
        changes: what else differs from the preset.
        way: of training and test.
        any_way: the run is scored on episodes of 20 classes too.
    """

    method: str
    steps: int
    bars: Mapping[int, float] = field(default_factory=dict)
    changes: tuple[str, ...] = RISE_AND_FALL
    way: int = 5
    any_way: bool = False

    @property
    def preset(self) -> str:
        """The preset's name."""
        return f"paper/{self.method}-omniglot"

    @property
    def name(self) -> str:
        """What its row is called."""
        return f"{self.method}, {self.way}-way"

    def bar(self, way: int) -> float | None:
        """Return what to come to at full length in %: by others' trainings, or as published."""
        figures = published("table3", "systems").get(self.method, {})
        printed = figures.get(f"omniglot-{way}way-1shot", (None,))
        found: float | None = self.bars.get(way, printed[0])
        return found

    def settings(self, *, quick: bool) -> tuple[str, ...]:
        """Return what the command sets."""
        steps = 2 if quick else self.steps
        every = max(1, steps // 4)
        way = () if self.way == 5 else (f"episode.way={self.way}",)
        fixed = (f"train.steps={steps}", f"train.validate_every={every}")
        few = (f"train.validate_episodes={4 if quick else 200}", f"train.checkpoint_every={every}")
        return ("precision=auto", *way, *fixed, *few, *self.changes)


CELLS = {
    cell.name: cell
    for cell in (
        Cell(method="prototypical", steps=8000, bars={5: 98.2}, any_way=True),
        Cell(method="matching", steps=1500, bars={5: 97}, any_way=True),
        Cell(method="ridge", steps=7000, bars={5: 98.5, MANY: 96.24}, any_way=True),
        Cell(method="siamese", steps=9000, any_way=True),
        Cell(method="relation", steps=15000, bars={5: 97.5}, any_way=True),
        Cell(method="memory", steps=1700, bars={5: 95}, any_way=True),
        Cell(method="neural-statistician", steps=1000, any_way=True),
        Cell(method="baseline", steps=4000, any_way=True),
        Cell(method="baseline-plus-plus", steps=4500, bars={5: 94}, any_way=True),
        Cell(method="simpleshot", steps=4000, any_way=True),
        Cell(
            method="svm",
            steps=1100,
            changes=("train.optimizer=adamw", *RISE_AND_FALL),
            any_way=True,
        ),
        Cell(method="maml", steps=8000, bars={5: 98}, changes=FEWER),
        Cell(method="maml", steps=1000, changes=FEW, way=MANY),
        Cell(method="fomaml", steps=10000, bars={5: 97}, changes=FEWER),
        Cell(method="boil", steps=1100, changes=FEWER),
        Cell(method="meta-sgd", steps=4000, bars={5: 98}, changes=FEWER),
        Cell(method="maml-plus-plus", steps=500, changes=("train.meta_batch=4", *RISE_AND_FALL)),
        Cell(method="imaml", steps=300, bars={5: 98}, changes=FEW),
        Cell(
            method="reptile",
            steps=450,
            bars={5: 95},
            changes=("train.optimizer=adamw", "options.step_size=5e-3", *RISE_AND_FALL),
        ),
        Cell(method="anil", steps=7000, bars={5: 97}, changes=FEWER),
        Cell(method="cavia", steps=800),
        Cell(method="snail", steps=7000, bars={5: 98}, changes=("train.query=5", *FEWER)),
        Cell(method="snail", steps=1500, changes=FEW, way=MANY),
        Cell(method="meta-networks", steps=7000),
        Cell(
            method="meta-lstm",
            steps=400,
            changes=(*SHORT, "options.step_size=0.1", *RISE_AND_FALL),
        ),
        Cell(method="learned-optimizer", steps=450, changes=(*SHORT, *RISE_AND_FALL)),
    )
}


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell's figures, accuracies in % with half their 95 % intervals.

    Attributes:
        train: the command.
        steps, of: hyper-iterations of the training, and of the preset.
        seconds: of processor time of the training command.
        chosen_at: the hyper-iteration of the checkpoint.
        validations: hyper-iteration and accuracy of each.
        tests: by the number of classes, accuracy on test classes with rotated copies and without.
        normalization, transductive: whose statistics; whether queries help one another.
    """

    name: str
    train: str
    steps: int
    of: int
    seconds: float
    chosen_at: int
    validations: tuple[tuple[int, float], ...]
    tests: Mapping[str, tuple[tuple[float, float], tuple[float, float]]]
    normalization: str
    transductive: bool


def command(cell: Cell, *, quick: bool) -> str:
    """Return what trains a cell."""
    sets = " ".join(f"--set {setting}" for setting in cell.settings(quick=quick))
    return f"bilevel-train --preset {cell.preset} --data omniglot.h5 --out DIR {sets}"


def measure(cell: Cell, out: Path, options: argparse.Namespace) -> Row:
    """Train and evaluate a cell."""
    settings = cell.settings(quick=options.quick)
    threads = (f"threads={options.threads}",)
    seen = train(cell.preset, options.data, out, (*threads, *settings), options.device)
    ways = (cell.way, MANY) if cell.any_way else (cell.way,)
    reports = {
        way: evaluate(out, episodes=options.episodes, device=options.device, way=way)
        for way in ways
    }
    norm = reports[cell.way]["norm"]
    return Row(
        name=cell.name,
        train=command(cell, quick=options.quick),
        steps=seen.validations[-1][1],
        of=load_preset(cell.preset)["train"]["steps"],
        seconds=round(seen.processor, 1),
        chosen_at=seen.best[1],
        validations=tuple((step, accuracy) for _, step, accuracy in seen.validations),
        tests={
            str(way): (per_cent(report), per_cent(report.get("upright", report)))
            for way, report in reports.items()
        },
        normalization=norm,
        transductive=not Normalization(norm).inductive,
    )


HEAD = """# Every method on Omniglot

<!-- Made of methods-omniglot.jsonl by benchmarks/omniglot.py --page; a test compares. -->

Each method by its preset `paper/METHOD-omniglot`, for some minutes of one core: one shot,
{episodes} test episodes, rotated copies of characters as classes too and upright ones alone,
accuracy in %. *Length* is the share of the outer steps of its preset; what adapts the whole network
had fewer episodes in each, as its command says. *Bar* is what it should come to at full length: of
five classes what trainings by others reach, or the figure of its paper; of twenty the latter. It is
*reached* where it is not above the interval. Checkpoints were chosen on validation classes.
"""
TABLE = """
## {way}-way 1-shot

| method | normalisation | minutes | outer steps | length | accuracy | upright | bar | reached |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
TAIL = """
`episode` normalisation classifies each query image with the help of the others (transductive), as
the papers of those methods do. Of twenty classes there are rows of methods that take any number,
trained as for five, and of two that were trained for twenty.

"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page of the documentation, the most accurate first."""
    parts = [HEAD.format(episodes=EPISODES)]
    for way in (5, MANY):
        there = [row for row in rows if str(way) in row["tests"]]
        there.sort(key=lambda row: -row["tests"][str(way)][0][0])
        parts += [TABLE.format(way=way), *(_line(row, way) for row in there)]
    parts.append(TAIL)
    if missing := [name for name in CELLS if name not in {row["name"] for row in rows}]:
        parts.append(f"Not recorded yet: {', '.join(missing)}.\n\n")
    commands = "".join(f"{row['train']}\n" for row in rows)
    return "".join((*parts, "```sh\n", commands, "bilevel-eval DIR --episodes 600\n```\n"))


def _line(row: dict[str, Any], way: int) -> str:
    cell, (rotated, upright) = CELLS[row["name"]], row["tests"][str(way)]
    bar = cell.bar(way)
    reached = "" if bar is None else "yes" if sum(rotated) >= bar else "no"
    sees = f"{row['normalization']}{', transductive' if row['transductive'] else ''}"
    return (
        f"| {cell.method} | {sees} | {row['seconds'] / 60:.1f} | {row['steps']:,} "
        f"| {row['steps'] / row['of']:.1%} | {text(rotated)} | {text(upright)} "
        f"| {'' if bar is None else bar} | {reached} |\n"
    )


def main() -> None:
    """Measure the cells that are asked for, or make the page of what is recorded."""
    parser = make_parser(__doc__, repeats=None)
    parser.set_defaults(threads=1)
    parser.add_argument("--data", type=Path, help="a store of Omniglot")
    parser.add_argument("--only", nargs="*", choices=CELLS, metavar="NAME", help="these cells")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of the test")
    parser.add_argument("--page", type=Path, help="make this page of the rows in --json, no more")
    options = parser.parse_args()
    if options.page:
        options.page.write_text(page(read_lines(options.json)), encoding="utf-8")
        return
    if options.data is None:
        parser.error("give --data FILE.h5, made by: bilevel-data prepare omniglot --out FILE.h5")
    done = {row["name"] for row in read_lines(options.json)}
    for name in options.only or CELLS:
        if name in done:
            continue
        with TemporaryDirectory() as scratch:
            row = measure(CELLS[name], Path(scratch) / "run", options)
        found = ", ".join(text(rotated) for rotated, _ in row.tests.values())
        print(f"| {name} | {row.steps} | {row.seconds:.0f} s | {found} |", flush=True)
        add_line(options.json, asdict(row))


if __name__ == "__main__":
    main()
