"""Table 4: the hyper-representation beside its variants, from the same budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel_apps.config import Config, load_preset, parse_config, with_settings
from bilevel_apps.drawing.style import CLASS_COLOURS, INK, new_figure, tidy_axes
from bilevel_apps.errors import InputError
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.published import published
from bilevel_apps.paper.trained.cells import (
    Cell,
    data_name,
    evaluation,
    held_out,
    score_cells,
    unseen,
)
from bilevel_apps.paper.trained.report import (
    MINI,
    OMNIGLOT,
    Named,
    above_chance,
    lead,
    percent,
    preset_for,
    report_cells,
    small_store,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ITEM"]

TEXT = prose(__file__)

OURS, MULTICLASS, CLASSIC = "hyper-representation", "multiclass", "classic-train"
PAPER = published("table4", "accuracy")
"""Accuracy in %, by the configuration's `method`."""

PRESETS = {OMNIGLOT: "paper/omniglot-5way-1shot", MINI: "paper/mini-imagenet-c4l-5way-1shot"}
TABLE4 = ("train.meta_batch=4", "inner.steps=5", "inner.lr=0.01")
"""What section 5.3 has in common, where the preset is for Omniglot."""

SMALL = (
    "model.filters=16",
    "train.steps=150",
    "train.lr=5e-3",
    "train.validate_every=50",
    "train.validate_episodes=100",
    "train.checkpoint_every=150",
)
FILTERS = {"c4l": 32, "omniglot-net": 64}
"""What networks have where `model.filters` does not say."""

EPISODES = 600


def run(work: Work) -> Report:
    """Compute the table."""
    store = small_store(work)
    preset = preset_for(store, PRESETS)
    cells = [
        _cell(work, store, preset, name) for name in PAPER if not work.only or name in work.only
    ]
    found = score_cells(work, cells)
    split = evaluation(next(iter(found.values()))[0]).split
    return report_cells(
        work,
        found,
        row=_row,
        details=_curve,
        claims=_claims(found, full=work.full),
        draw=_draw,
        settings={
            "data": data_name(store),
            "preset": preset,
            **{cell.name: ", ".join(cell.settings) for cell in cells},
            "scored on": f"{EPISODES} episodes of {split}, upright and rotated classes where "
            "copies are classes; the checkpoint that validated best",
        },
        differs=TEXT.differs,
        quick=TEXT.quick,
    )


def _cell(work: Work, store: Path, preset: str, name: str) -> Cell:
    return Cell(
        name=name,
        preset=preset,
        store=store,
        settings=_settings(work, preset, name),
        request=unseen(held_out(store), episodes=EPISODES),
    )


def _settings(work: Work, preset: str, name: str) -> tuple[str, ...]:
    """Return the changes of the preset: those of the row, and those of the command line."""
    settings = [f"method={name}"]
    settings += TABLE4 if preset == PRESETS[OMNIGLOT] else ()
    settings += () if work.full else SMALL
    settings += work.assignments
    common = parse_config(with_settings(load_preset(preset), settings), "`assignments`")
    change = SAME_BUDGET.get(name)
    return (*settings, *(change(common) if change is not None else ()))


def _fewer_steps(common: Config) -> tuple[str, ...]:
    """Return a T-th of the hyper-iterations, as each is T passes through the backbone."""
    return tuple(
        f"train.{key}={max(1, getattr(common.train, key) // max(1, common.inner.steps or 1))}"
        for key in ("steps", "validate_every", "checkpoint_every")
    )


def _wider(common: Config) -> tuple[str, ...]:
    """Return twice the filters, four times the work an image, and a quarter of the images.

    They are in pairs of a class, one as support and one as query image.

    Raises:
        InputError: the network's filters are not known.
    """
    train, episode, model = common.train, common.episode, common.model
    filters = model.filters or FILTERS.get(model.name)
    if filters is None:
        raise InputError(
            f"{MULTICLASS}: it has twice the filters of the other rows, but those of {model.name} "
            "are not known: give `assignments`=model.filters=N"
        )
    way, shot = _typical(train.way or episode.way), _typical(train.shot or episode.shot)
    images = train.meta_batch * way * (shot + (train.query or episode.query)) // 4
    batches = max(1, train.meta_batch // 4)
    return (
        f"model.filters={2 * filters}",
        f"train.meta_batch={batches}",
        "train.accumulate=1",
        f"train.way={max(1, images // (2 * batches))}",
        "train.shot=1",
        "train.query=1",
    )


def _typical(number: int | tuple[int, int]) -> int:
    """Return a number, or the middle of its range."""
    return number if isinstance(number, int) else sum(number) // 2


SAME_BUDGET: dict[str, Callable[[Config], tuple[str, ...]]] = {
    MULTICLASS: _wider,
    CLASSIC: _fewer_steps,
}
"""What changes in a row so that it has as much work as the others."""


def _row(name: str, part: Part) -> Row:
    found, report = part.result, evaluation(part)
    return {
        "method": name,
        "filters": found["filters"],
        "paper, mini-ImageNet": PAPER[name],
        "accuracy": 100 * report.score.accuracy,
        "±": 100 * report.score.ci95,
        "upright": None if report.upright is None else 100 * report.upright.accuracy,
        "split": report.split,
        "best validation": 100 * found["validation"] if "validation" in found else None,
        "normalisation": report.norm,
        "T": report.inner.steps,
        "hyper-iterations": found.get("hyper_iterations"),
        "outer steps": _outer_steps(name, found),
        "chosen at": report.checkpoint_step,
        "seconds of training": found.get("trained_seconds"),
        "seed": found["trained_seed"],
        "checkpoint": report.checkpoint_sha256[:12],
    }


def _outer_steps(name: str, found: Mapping[str, Any]) -> int | None:
    """Return how often the weights were moved: T times a hyper-iteration by Classic-train."""
    done: int | None = found.get("hyper_iterations")
    return done and done * (found["trained_inner_steps"] if name == CLASSIC else 1)


def _curve(name: str, part: Part) -> list[Row]:
    """Return the validations of a training, or where it ended if nothing has them."""
    found = part.result
    ends = [[evaluation(part).checkpoint_step, None, found.get("validation")]]
    return [
        {
            "method": name,
            "seed": found["trained_seed"],
            "hyper-iterations": step,
            "seconds": seconds,
            "validation accuracy": accuracy,
        }
        for step, seconds, accuracy in found.get("validations") or ends
    ]


def _claims(found: Mapping[str, Sequence[Part]], *, full: bool) -> list[Claim]:
    rivals = [name for name in found if name != OURS and (full or name != MULTICLASS)]
    if OURS not in found or not rivals:
        text = "each row is above chance by more than its interval"
        return [above_chance(text, [part for parts in found.values() for part in parts])]
    return [_ahead(name, found) for name in rivals]


def _ahead(name: str, found: Mapping[str, Sequence[Part]]) -> Claim:
    """Compare the worst of ours with the best of theirs, less both intervals."""
    ours = min(map(evaluation, found[OURS]), key=lambda report: report.score.accuracy)
    theirs = max(map(evaluation, found[name]), key=lambda report: report.score.accuracy)
    return Claim(
        text=f"the hyper-representation is ahead of {name} by more than the sum of both intervals",
        holds=lead(ours, theirs) > 0,
        found=f"{percent(ours)} and {percent(theirs)} %",
    )


def _draw(parts: Named) -> Figure:
    """Draw the validations of the trainings, where MLflow has them, and the accuracies."""
    curves = any(part.result.get("validations") for _, part in parts)
    figure = new_figure(9.6 if curves else 6.4, 4.0, layout="constrained")
    if curves:
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        _draw_curves(left, parts)
    else:
        right = figure.subplots()
    _draw_accuracies(right, parts)
    tidy_axes(*figure.axes)
    return figure


def _draw_curves(axes: Axes, parts: Named) -> None:
    for name, part in parts:
        points = part.result.get("validations") or []
        if points:
            # A hyper-iteration of Classic-train is T passes through the backbone.
            passes = part.result["trained_inner_steps"] if name == CLASSIC else 1
            x = [passes * step for step, _, _ in points]
            y = [100 * accuracy for _, _, accuracy in points]
            axes.plot(x, y, color=COLOURS[name], marker=".", linewidth=1.4)
    axes.set_xlabel("passes of a meta-batch through the backbone")
    axes.set_ylabel("validation accuracy, %")


def _draw_accuracies(axes: Axes, parts: Named) -> None:
    names = list(dict.fromkeys(name for name, _ in parts))
    for name, part in parts:
        score, y = evaluation(part).score, len(names) - names.index(name)
        axes.errorbar(
            100 * score.accuracy,
            y,
            xerr=100 * score.ci95,
            color=COLOURS[name],
            marker="o",
            capsize=3,
        )
    rows = range(len(names), 0, -1)
    axes.plot(
        [PAPER[name] for name in names],
        list(rows),
        color=INK,
        marker="D",
        markerfacecolor="white",
        linestyle="none",
        label="the paper's, mini-ImageNet",
    )
    axes.set_yticks(list(rows), names)
    for label in axes.get_yticklabels():  # they are the legend of the curves too
        label.set_color(COLOURS[label.get_text()])
    first = parts[0][1]
    axes.set_xlabel(f"accuracy, %, {first.result['data']}, {evaluation(first).split}")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0))


COLOURS = dict(zip(PAPER, CLASS_COLOURS, strict=False))

ITEM = Item(
    name="table4",
    title="The hyper-representation beside its variants",
    paper=TEXT.paper,
    seeds={Scale.QUICK: 1, Scale.FULL: 1},
    run=run,
    data=(MINI, OMNIGLOT),
    cells=tuple(PAPER),
    trains=True,
    fixed=("method",),
    shows=True,
)
