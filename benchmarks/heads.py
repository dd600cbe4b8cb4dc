"""Are the heads of packaged weights right for any task? Accuracy and calibration, beside baselines.

Every image passes the backbone once; all heads see the same features and the same tasks. A task's
classes and query images are those of its number, and its support images are the first few of one
order: so that tasks with more pictures are those with fewer, and pictures more.

default      `heads.HeadSolver` with the numbers of the weights
means        the nearest class mean
regression   scikit-learn's logistic regression, its penalty by cross-validation
descent      the best of a grid of T and η on these very tasks, which nobody could know

Where a data set has 20 images a class, 15 stand for 20 and for 50, and five are queries.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from measuring import Verdict, device_of, finish, make_parser
from numpy.typing import NDArray
from torch import Tensor

from bilevel_apps.runs.load import load_run
from bilevel_apps.scoring.baselines import regress
from bilevel_apps.scoring.calibration import calibration_error
from bilevel_data import open_store
from bilevel_models import as_images, heads

EQUAL = (1, 2, 5, 10, 20)
MIXED = ((2, 1, 1, 1, 1), (3, 1, 2, 1, 4), (10, 1, 1, 1, 1), (50, 2, 2, 2, 2))
STEPS, SIZES = (1, 2, 5, 20, 100), (0.03, 0.1, 0.3, 1.0)
TOLERANCE = 0.3  # points
BASELINES = ("means", "regression", "descent")
CHUNK = 10  # tasks solved at once


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """A data set in the features of some weights."""

    store: str
    tag: str
    split: str
    ways: tuple[int, ...]
    query: int
    most: int


PARTS = {
    "omniglot": Part(
        store="omniglot", tag="omniglot-5way-1shot", split="test", ways=(5, 20), query=5, most=15
    ),
    "mini-imagenet": Part(
        store="mini-imagenet",
        tag="mini-imagenet-c4l-5way-1shot",
        split="val",
        ways=(5,),
        query=15,
        most=50,
    ),
    "glyphs": Part(
        store="glyphs", tag="omniglot-5way-1shot", split="test", ways=(5,), query=5, most=15
    ),
}


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of task; accuracies and the error of calibration in per cent.

    Attributes:
        interval: half the 95 % interval of `default`.
        behind: of the best of the others over `default`, on the tasks that they share.
        behind_interval: half the 95 % interval of that difference.
        calibration: the expected calibration error of `default`.
    """

    part: str
    shots: tuple[int, ...]
    tasks: int
    default: float
    interval: float
    calibration: float
    means: float
    regression: float | None
    descent: float
    behind: float
    behind_interval: float


@final
@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of a split, and where its classes begin."""

    values: Tensor
    offsets: NDArray[np.int64]

    def tasks(self, shots: Sequence[int], query: int, numbers: range) -> tuple[Tensor, Tensor]:
        """Return support (tasks, Σ shots, dim) and query (tasks, way*query, dim) features."""
        rows = [self._rows(shots, query, number) for number in numbers]
        support, others = zip(*rows, strict=True)
        return self.values[np.array(support)], self.values[np.array(others)]

    def _rows(self, shots: Sequence[int], query: int, number: int) -> tuple[list[int], list[int]]:
        random = np.random.default_rng([number, len(shots)])
        classes = random.choice(len(self.offsets) - 1, len(shots), replace=False)
        support: list[int] = []
        others: list[int] = []
        for shot, c in zip(shots, classes, strict=True):
            order = random.permutation(np.arange(self.offsets[c], self.offsets[c + 1])).tolist()
            support += order[:shot]
            others += order[len(order) - query :]
        return support, others


def features(part: Part, path: Path) -> tuple[Features, heads.HeadSolver, float]:
    """Return a split's features, the solver of the weights, and the scale of their descent."""
    run = load_run(Path(f"pretrained:{part.tag}"), "cpu")
    split = open_store(path).load(part.split)
    found = []
    for first in range(0, len(split.images), 500):
        images = as_images(np.asarray(split.images[first : first + 500]))[None]
        support, query = run.learner.encoder(images[:, :1], images[:, 1:], training=False)
        found.append(torch.cat((support[0], query[0])).detach())
    solver, scale = run.learner.solver, float(run.learner.log_scale.detach().exp())
    return Features(values=torch.cat(found), offsets=np.asarray(split.offsets)), solver, scale


def kinds(part: Part) -> Iterator[tuple[int, ...]]:
    """Yield the numbers of pictures of the classes of each kind of task."""
    for way in part.ways:
        seen = dict.fromkeys((min(shot, part.most),) * way for shot in EQUAL)
        yield from seen
    for shots in MIXED:
        yield tuple(min(shot, part.most) for shot in shots)


def name_of(shots: Sequence[int]) -> str:
    """Return what a kind of task is called: 5x1 has five classes of one picture."""
    equal = len(set(shots)) == 1
    return f"{len(shots)}x{shots[0]}" if equal else ",".join(map(str, shots))


def measure(
    name: str, part: Part, path: Path, options: argparse.Namespace
) -> tuple[list[Row], dict[tuple[int, ...], NDArray[np.float64]]]:
    """Return the rows of a part, printed as they come, and the default's accuracies by task."""
    found, solver, scale = features(part, path)
    rows: list[Row] = []
    accuracies: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for shots in kinds(part):
        if options.kinds and name_of(shots) not in options.kinds:
            continue
        row, accuracies[shots] = compare(name, part, found, solver, scale, shots, options)
        rows.append(row)
        print_row(row)
    return rows, accuracies


def compare(
    name: str,
    part: Part,
    found: Features,
    solver: heads.HeadSolver,
    scale: float,
    shots: tuple[int, ...],
    options: argparse.Namespace,
) -> tuple[Row, NDArray[np.float64]]:
    """Return the row of one kind of task, and the default's accuracies."""
    labels, truth = _labels(shots), _labels((part.query,) * len(shots))
    probabilities, right, means, regression = [], [], [], []
    grid: dict[tuple[int, float], list[Tensor]] = {}
    for first in range(0, options.tasks, CHUNK):
        numbers = range(first, min(first + CHUNK, options.tasks))
        support, query = found.tasks(shots, part.query, numbers)
        targets = heads.one_hot(labels.expand(len(support), -1), len(shots), support)
        answers = truth.expand(len(support), -1)
        scores = heads.logits(solver.fit(support, targets), query).detach()
        probabilities.append(scores.softmax(-1))
        right.append(heads.accuracy(scores, answers))
        nearest = heads.logits(heads.class_means(support, targets), query)
        means.append(heads.accuracy(nearest, answers))
        if first < options.regressions:
            known = labels.expand(len(support), -1)
            regression += [
                regress(*task) for task in zip(support, known, query, answers, strict=True)
            ]
        for steps, size in itertools.product(STEPS, SIZES):
            accuracy = _descended(support, targets, query, answers, steps, size, scale)
            grid.setdefault((steps, size), []).append(accuracy)
    mine = 100 * torch.cat(right).numpy()
    others = {
        "means": 100 * torch.cat(means).numpy(),
        **({"regression": 100 * np.array(regression)} if regression else {}),
        "descent": max((100 * torch.cat(x).numpy() for x in grid.values()), key=np.mean),
    }
    behind = max((x - mine[: len(x)] for x in others.values()), key=np.mean)
    row = Row(
        part=name,
        shots=shots,
        tasks=options.tasks,
        default=float(mine.mean()),
        interval=_half(mine),
        calibration=100 * calibration_error(torch.cat(probabilities), truth),
        behind=float(behind.mean()),
        behind_interval=_half(behind),
        **{key: float(others[key].mean()) if key in others else None for key in BASELINES},
    )
    return row, mine


def _half(values: NDArray[np.float64]) -> float:
    return 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))


def _labels(shots: Sequence[int]) -> Tensor:
    return torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))


def _descended(
    support: Tensor,
    targets: Tensor,
    query: Tensor,
    answers: Tensor,
    steps: int,
    size: float,
    scale: float,
) -> Tensor:
    try:
        head = heads.descend(support, targets, steps=steps, step_size=size, scale=scale)
    except heads.HeadDivergenceError:
        return torch.zeros(len(support), dtype=torch.float64)
    return heads.accuracy(heads.logits(head, query), answers)


def print_row(row: Row) -> None:
    """Print a row as part of a table."""
    shots = str(row.shots[0]) if len(set(row.shots)) == 1 else ", ".join(map(str, row.shots))
    regression = "" if row.regression is None else f"{row.regression:.1f}"
    print(
        f"| {row.part}, {len(row.shots)}-way | {shots} | {row.default:.1f} ± {row.interval:.1f} "
        f"| {row.calibration:.1f} | {row.means:.1f} | {regression} | {row.descent:.1f} "
        f"| {row.behind:+.1f} ± {row.behind_interval:.1f} |",
        flush=True,
    )


def judge(
    rows: Sequence[Row], accuracies: dict[str, dict[tuple[int, ...], NDArray[np.float64]]]
) -> list[Verdict]:
    """Return what holds of the issue's criteria."""
    worst = max(rows, key=lambda row: row.behind - row.behind_interval)
    least = max(rows, key=lambda row: row.calibration)
    falls = [fall for part in accuracies.values() for fall in _falls(part)]
    return [
        Verdict(
            claim=f"the default is no more than {TOLERANCE} points behind the best of the others",
            met=worst.behind - worst.behind_interval <= TOLERANCE,
            figure=f"{worst.behind:+.2f} ± {worst.behind_interval:.2f}: {worst.part} {worst.shots}",
        ),
        Verdict(
            claim="more pictures never hurt, beyond the interval of the difference",
            met=not [fall for fall in falls if fall[0] < -fall[1]],
            figure="; ".join(
                f"{a} to {b}: {mean:+.2f} ± {half:.2f}" for mean, half, a, b in falls[:3]
            ),
        ),
        Verdict(
            claim="the calibration error is at most 5 %",
            met=least.calibration <= 5,
            figure=f"at most {least.calibration:.1f}: {least.part} {least.shots}",
        ),
    ]


def _falls(
    part: dict[tuple[int, ...], NDArray[np.float64]],
) -> list[tuple[float, float, tuple[int, ...], tuple[int, ...]]]:
    """Return mean, interval and kinds of the pairs where one has all pictures of the other."""
    found = []
    for fewer, more in itertools.permutations(part, 2):
        if len(fewer) == len(more) and all(map(int.__le__, fewer, more)):
            rise = part[more] - part[fewer]
            found.append((float(rise.mean()), _half(rise), fewer, more))
    return sorted(found)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("--stores", type=Path, default=Path(), help="folder of NAME.h5")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--kinds", nargs="+", default=[], help="such as 5x1 2,1,1,1,1; else all")
    parser.add_argument("--tasks", type=int, default=600, help="of each kind")
    parser.add_argument("--regressions", type=int, default=200, help="of them by scikit-learn")
    options = parser.parse_args()
    if options.quick:
        options.tasks = options.regressions = CHUNK
    return options


def main() -> None:
    """Print a row for each kind of task, then a line for each criterion."""
    options = parse()
    if device_of(options) is None:
        return
    columns = ("data", "pictures", "default", "calibration", *BASELINES, "behind")
    print(f"\n| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|")
    rows: list[Row] = []
    accuracies: dict[str, dict[tuple[int, ...], NDArray[np.float64]]] = {}
    for name in options.parts:
        path = options.stores / f"{PARTS[name].store}.h5"
        if not path.exists():
            print(f"{name}: no {path}")
            continue
        found, accuracies[name] = measure(name, PARTS[name], path, options)
        rows += found
    if rows:
        finish(options, rows, judge(rows, accuracies))


if __name__ == "__main__":
    main()
