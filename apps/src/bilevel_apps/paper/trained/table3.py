"""Table 3: few-shot accuracy of the hyper-representation, and of the other nine systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from bilevel_apps.drawing.style import BLUE, GREEN, INK, VERMILLION, new_figure, tidy_axes
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.report import RAW_PIXELS
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.published import published
from bilevel_apps.paper.trained.cells import Cell, evaluation, held_out, score_cells, unseen
from bilevel_apps.paper.trained.report import Named, report_cells
from bilevel_apps.paper.trained.systems import SYSTEMS, interval
from bilevel_apps.system.terminal import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ITEM"]


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """A column of the table.

    Attributes:
        data: the data set.
        way, shot: of its episodes.
        paper: the row of the hyper-representation, %, and half its interval where it is given.
        best: the highest figure of the paper's table.
    """

    data: str
    way: int
    shot: int
    paper: tuple[float, float | None]
    best: float


def _task(name: str, row: Sequence[float]) -> Task:
    network, way, shot = name.rsplit("-", 2)
    data = network.removesuffix("-c4l").removesuffix("-rn")
    return Task(
        data=data,
        way=int(way.removesuffix("way")),
        shot=int(shot.removesuffix("shot")),
        paper=interval(row),
        best=published("table3", "highest")[f"{data}-{way}-{shot}"],
    )


TASKS = {
    name: _task(name, row) for name, row in published("table3", "hyper-representation").items()
}
DATA = {task.data for task in TASKS.values()}
PAPER = "paper/"
"""A cell with this before its name has the paper's own settings; without, ours."""

LONG = "omniglot-20way-1shot-long"
"""What the cells of ours on Omniglot are trained by at full scale, once for all four."""

TEXT = prose(__file__, long=LONG)

NOTES = tuple(f"{each.title}: {each.note}." for each in SYSTEMS.values() if each.note)

MADE_BY = ("model.name", "method", "model.norm", "model.unit_length")
"""The settings that make a cell, which its runs have in common."""

OTHERS = tuple(
    f"{method}/{task.replace('-c4l', '')}"
    for method in SYSTEMS
    for task in TASKS
    if "-rn-" not in task
)
"""Cells of the other systems, such as `prototypical/omniglot-5way-1shot`."""

CELLS = (*TASKS, *(PAPER + name for name in TASKS), *OTHERS)
EPISODES = {False: 300, True: 600}
SMALL = (
    "model.filters=16",
    "train.steps=150",
    "train.meta_batch=2",
    "train.way=20",
    "train.query=5",
    "train.validate_every=150",
    "train.validate_episodes=100",
    "train.checkpoint_every=150",
)
"""What makes a training one of seconds; the episodes of validation and test stay as they are."""


QUICK_OF_OTHERS = ("train.schedule=onecycle", "train.lr=3e-3")
"""For a training of seconds a rate that rises and falls is better than the presets'."""


def task_of(name: str) -> Task:
    """Return the column that a cell is in."""
    method, _, rest = name.rpartition("/")
    if method not in SYSTEMS:
        return TASKS[name.removeprefix(PAPER)]
    return TASKS[rest.replace("mini-imagenet-", "mini-imagenet-c4l-")]


def system_of(name: str) -> str:
    """Return the system that a cell is of, by the value of `method`."""
    method = name.rpartition("/")[0]
    return method if method in SYSTEMS else "hyper-representation"


def run(work: Work) -> Report:
    """Compute the table."""
    found = score_cells(work, _cells(work))
    split = sorted({evaluation(part).split for parts in found.values() for part in parts})
    return report_cells(
        work,
        found,
        row=_row,
        details=_details,
        claims=_claims(found, full=work.full),
        draw=_draw,
        settings={
            "trained by": "the preset of the cell's name"
            + (f", with {', '.join(SMALL)}" if not work.full else f"; on Omniglot by {LONG}"),
            "changed": ", ".join(work.assignments) or "nothing",
            "data": ", ".join(sorted(work.stores)),
            "scored on": f"{EPISODES[work.full]} episodes of {' and '.join(split)}, 15 query "
            "images a class, none of them a support image; the checkpoint that validated best",
        },
        differs=(*TEXT.differs, *NOTES),
        quick=TEXT.quick,
    )


def _cells(work: Work) -> list[Cell]:
    """Return what to compute: what was asked for, or all of our own whose data are at hand."""
    asked = work.only or _usual(work)
    return [_cell(work, name) for name in CELLS if name in asked]


def _usual(work: Work) -> tuple[str, ...]:
    there = DATA & set(work.stores)
    if not there:
        if work.full:
            raise InputError(
                f"`data`: the table is about {' and '.join(sorted(DATA))}, but the stores are of "
                f"{', '.join(work.stores)}: give one of the data sets that it is about"
            )
        there = {"omniglot"}
    if not work.full:
        there -= {"mini-imagenet"} if len(there) > 1 else set()
    left = sorted(DATA - there)
    if left:
        say(f"table3: without {', '.join(left)}")
    narrow = [name for name in TASKS if work.full or "-rn-" not in name]
    # At quick scale one column says what the others would.
    others = [name for name in OTHERS if work.full or name.endswith("omniglot-5way-1shot")]
    return tuple(name for name in (*narrow, *others) if task_of(name).data in there)


def _cell(work: Work, name: str) -> Cell:
    task, method = task_of(name), system_of(name)
    if method in SYSTEMS:
        return _other_cell(work, name)
    # Other small pictures show the order of its cells too, where the table's are not at hand.
    stands_in = task.data == "omniglot" and not work.full and not DATA & set(work.stores)
    if task.data not in work.stores and not stands_in:
        raise InputError(f"{name}: no store of {task.data}: give it with `data` too")
    store = work.stores.get(task.data) or work.store
    long = work.full and task.data == "omniglot" and not name.startswith(PAPER)
    return Cell(
        name=name,
        preset=LONG if long else name,
        store=store,
        training=LONG if long else "",
        settings=(*(() if work.full else ("inner.steps=5", *SMALL)), *work.assignments),
        like=MADE_BY,
        request=unseen(
            held_out(store),
            episodes=EPISODES[work.full],
            way=task.way,
            shot=task.shot,
            baselines=True,
        ),
    )


def _other_cell(work: Work, name: str) -> Cell:
    """Return a cell of another system."""
    task, method = task_of(name), system_of(name)
    stands_in = task.data == "omniglot" and not work.full and not DATA & set(work.stores)
    if task.data not in work.stores and not stands_in:
        raise InputError(f"{name}: no store of {task.data}: give it with `data` too")
    store = work.stores.get(task.data) or work.store
    small = (*SMALL, *QUICK_OF_OTHERS, *SYSTEMS[method].quick)
    episode = (f"episode.way={task.way}", f"episode.shot={task.shot}")
    return Cell(
        name=name,
        preset=f"paper/{method}-{task.data}",
        store=store,
        settings=(*episode, *(() if work.full else small), *work.assignments),
        like=("model.name", "method", "model.norm"),
        request=unseen(
            held_out(store),
            episodes=EPISODES[work.full],
            way=task.way,
            shot=task.shot,
            baselines=True,
        ),
    )


def _published(name: str) -> tuple[float | None, float | None]:
    """Return a cell's published figure, %, and half its interval where it is given."""
    method, task = system_of(name), task_of(name)
    if method not in SYSTEMS:
        return task.paper
    return SYSTEMS[method].figures.get(f"{task.data}-{task.way}way-{task.shot}shot", (None, None))


def _row(name: str, part: Part) -> Row:
    found, task = part.result, task_of(name)
    report = evaluation(part)
    upright, pixels = report.upright, (report.baselines or {})[RAW_PIXELS]
    paper, interval = _published(name) if found["data"] == task.data else (None, None)
    return {
        "cell": name,
        "system": system_of(name),
        "data": found["data"],
        "paper": paper,
        "paper ±": interval,
        "highest in its table": None if paper is None else task.best,
        "accuracy": 100 * report.score.accuracy,
        "±": 100 * report.score.ci95,
        "upright": None if upright is None else 100 * upright.accuracy,
        "upright ±": None if upright is None else 100 * upright.ci95,
        "raw pixels": 100 * pixels.accuracy,
        "normalisation": report.norm,
        "T": report.inner.steps,
        "split": report.split,
        "episodes": report.score.episodes,
        "seed": found["trained_seed"],
        "hyper-iterations": found.get("hyper_iterations"),
        "checkpoint": report.checkpoint_sha256[:12],
    }


def _details(name: str, part: Part) -> list[Row]:
    found, report = part.result, evaluation(part)
    return [
        {
            "cell": name,
            "checkpoint_sha256": report.checkpoint_sha256,
            "checkpoint_step": report.checkpoint_step,
            "validation": found.get("validation"),
            "trained_seconds": found.get("trained_seconds"),
            "from_step": found.get("from_step"),
            "seconds": part.seconds,
            "split_sha256": report.split_sha256,
        }
    ]


def _claims(found: Mapping[str, Sequence[Part]], *, full: bool) -> list[Claim]:
    """Return what the paper's row says of the cells that are there."""
    scores = {name: _Scores.of(parts) for name, parts in found.items()}
    claims = [_above_pixels(scores)]
    for text, (more, less) in {
        "five support images a class are better than one": ((None, 5), (None, 1)),
        "five classes are easier than twenty": ((5, None), (20, None)),
    }.items():
        pairs = _pairs(scores, more, less)
        if pairs:
            claims.append(_ordered(text, pairs, scores))
    return claims + ([_reached(scores)] if full else [])


@final
@dataclass(frozen=True, kw_only=True)
class _Scores:
    """A cell's accuracies in %: of its worst seed, with its interval, and of raw pixels."""

    accuracy: float
    ci95: float
    pixels: float
    pixels_ci95: float

    @classmethod
    def of(cls, parts: Sequence[Part]) -> _Scores:
        worst = min(map(evaluation, parts), key=lambda found: found.score.accuracy)
        pixels = (worst.baselines or {})[RAW_PIXELS]
        return cls(
            accuracy=100 * worst.score.accuracy,
            ci95=100 * worst.score.ci95,
            pixels=100 * pixels.accuracy,
            pixels_ci95=100 * pixels.ci95,
        )


def _above_pixels(scores: Mapping[str, _Scores]) -> Claim:
    gaps = {name: s.accuracy - s.ci95 - s.pixels - s.pixels_ci95 for name, s in scores.items()}
    least = min(gaps, key=lambda name: gaps[name])
    return Claim(
        text="each cell is above nearest neighbours in raw pixels by more than the sum of both "
        "intervals",
        holds=gaps[least] > 0,
        found=f"least in {least}: {scores[least].accuracy:.2f} % and {scores[least].pixels:.2f} %",
    )


def _pairs(
    scores: Mapping[str, _Scores],
    more: tuple[int | None, int | None],
    less: tuple[int | None, int | None],
) -> list[tuple[str, str]]:
    """Return the cells that differ in nothing but way or shot, the better ones first."""

    def changed(name: str) -> str:
        for (a, b), unit in zip(zip(more, less, strict=True), ("way", "shot"), strict=True):
            name = name.replace(f"-{a}{unit}", f"-{b}{unit}")
        return name

    return [(name, changed(name)) for name in scores if changed(name) in scores.keys() - {name}]


def _ordered(text: str, pairs: Sequence[tuple[str, str]], scores: Mapping[str, _Scores]) -> Claim:
    gaps = [
        scores[a].accuracy - scores[a].ci95 - scores[b].accuracy - scores[b].ci95 for a, b in pairs
    ]
    return Claim(
        text=f"{text}, by more than the sum of both intervals",
        holds=min(gaps) > 0,
        found="; ".join(
            f"{a} {scores[a].accuracy:.2f}, {b} {scores[b].accuracy:.2f} %" for a, b in pairs
        ),
    )


def _reached(scores: Mapping[str, _Scores]) -> Claim:
    """Return whether each cell is at the paper's figure or above, but for both intervals."""
    gaps = {}
    for name, s in scores.items():
        figure, interval = _published(name)
        if figure is None:
            continue
        gaps[name] = s.accuracy + s.ci95 - figure + (interval or 0.0)
    short = [name for name, gap in gaps.items() if gap < 0]
    return Claim(
        text="each cell reaches the paper's accuracy, within the intervals",
        holds=not short,
        found=f"{len(gaps) - len(short)} of {len(gaps)}"
        + (f", not {', '.join(short)}" * bool(short)),
    )


def _draw(parts: Named) -> Figure:
    """Draw ours beside the paper's, a line a cell."""
    figure = new_figure(8.4, 1.4 + 0.42 * len(parts), layout="constrained")
    axes = figure.subplots()
    places = range(len(parts))[::-1]
    rows = [_row(name, part) for name, part in parts]
    dot: dict[str, Any] = {"linestyle": "none", "markersize": 6}

    def values(key: str) -> tuple[list[float], list[int]]:
        kept = [(row[key], y) for row, y in zip(rows, places, strict=True) if row[key] is not None]
        return [x for x, _ in kept], [y for _, y in kept]

    errors = [row["±"] for row in rows]
    axes.errorbar(
        values("accuracy")[0],
        list(places),
        xerr=errors,
        color=BLUE,
        marker="o",
        label="ours",
        **dot,
    )
    for key, label, colour, marker, lift in (
        ("upright", "ours, upright classes alone", GREEN, "s", -0.18),
        ("paper", "the paper's", VERMILLION, "D", 0.18),
        ("raw pixels", "raw pixels", INK, "x", 0.0),
    ):
        x, y = values(key)
        if x:
            axes.plot(x, [at + lift for at in y], color=colour, marker=marker, label=label, **dot)
    axes.set_yticks(list(places), [row["cell"] for row in rows])
    axes.set_xlabel("accuracy, %")
    axes.grid(axis="x", alpha=0.3)
    tidy_axes(axes)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


ITEM = Item(
    name="table3",
    title="Few-shot accuracy of the hyper-representation and nine other systems",
    paper=TEXT.paper,
    seeds={Scale.QUICK: 1, Scale.FULL: 1},
    run=run,
    data=("omniglot", "mini-imagenet"),
    cells=CELLS,
    trains=True,
    fixed=MADE_BY,
    shows=True,
)
