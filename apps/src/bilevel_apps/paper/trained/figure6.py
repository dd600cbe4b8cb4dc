"""Figure 6: the meta-validation of T, the number of inner steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bilevel_apps.drawing.style import CLASS_COLOURS, INK, new_figure, tidy_axes
from bilevel_apps.evaluate.curve import best_of
from bilevel_apps.evaluate.report import EvaluationReport
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.published import published
from bilevel_apps.paper.trained.cells import Cell, data_name, evaluation, score_cells, unseen
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

PRESETS = {OMNIGLOT: "paper/omniglot-5way-1shot", MINI: "paper/mini-imagenet-rn-5way-1shot"}
PAPER = published("figure6", "stopped")
"""Hyper-iterations at which the training was stopped, by T."""

MADE_BY = ("model.name", "method", "inner.steps")
"""The settings that make a cell, which its runs have in common."""

CELLS = {f"T-{steps}": steps for steps in PAPER}
TRIED = (1, *PAPER, 20)
EPISODES = 600
SMALL = (
    "model.filters=16",
    "inner.lr=0.01",
    "train.steps=100",
    "train.meta_batch=4",
    "train.lr=5e-3",
    "train.validate_every=50",
    "train.validate_episodes=100",
    "train.checkpoint_every=100",
)


def run(work: Work) -> Report:
    """Train with each T, and score each with every T on the validation classes."""
    store = small_store(work)
    preset = preset_for(store, PRESETS)
    cells = [
        Cell(
            name=name,
            preset=preset,
            store=store,
            settings=(*(() if work.full else SMALL), f"inner.steps={steps}", *work.assignments),
            request=unseen("val", episodes=EPISODES, steps=TRIED),
            like=MADE_BY,
        )
        for name, steps in CELLS.items()
        if not work.only or name in work.only
    ]
    found = score_cells(work, cells)
    parts = [part for those in found.values() for part in those]
    return report_cells(
        work,
        found,
        row=_row,
        details=_curve,
        claims=_claims(parts, full=work.full),
        draw=_draw,
        settings={
            "data": data_name(store),
            "preset": preset,
            **{cell.name: ", ".join(cell.settings) for cell in cells},
            "scored on": f"{EPISODES} episodes of val, not those that the checkpoint was chosen on",
            "maximum": _maximum(parts),
        },
        differs=TEXT.differs,
        quick=TEXT.quick,
    )


def _maximum(parts: Sequence[Part]) -> str:
    """Return the T whose own training has the highest accuracy, and that."""
    best = max(map(evaluation, parts), key=lambda found: found.score.accuracy)
    return f"T = {best.inner.steps}, {percent(best)} %"


def _row(_name: str, part: Part) -> Row:
    found, report = part.result, evaluation(part)
    best = best_of(report.curve, report.inner)
    paper = found["data"] == MINI
    return {
        "T": report.inner.steps,
        "stopped at, paper, RN": PAPER.get(_steps(report)) if paper else None,
        "best at": report.checkpoint_step,
        "hyper-iterations": found.get("hyper_iterations"),
        "accuracy": 100 * report.score.accuracy,
        "±": 100 * report.score.ci95,
        "best T": best.inner.steps,
        "with the best T": None if best.score is None else 100 * best.score.accuracy,
        "normalisation": report.norm,
        "seed": found["trained_seed"],
        "checkpoint": report.checkpoint_sha256[:12],
    }


def _steps(report: EvaluationReport) -> int:
    """Return T, which every training of this item has."""
    return report.inner.steps or 0


def _curve(_name: str, part: Part) -> list[Row]:
    report = evaluation(part)
    return [
        {
            "trained with": report.inner.steps,
            "seed": part.result["trained_seed"],
            "T": point.inner.steps,
            "accuracy": None if point.score is None else point.score.accuracy,
            "ci95": None if point.score is None else point.score.ci95,
        }
        for point in report.curve
    ]


def _claims(parts: Sequence[Part], *, full: bool) -> list[Claim]:
    """Compare the least T with the largest: the best seed of the one, the worst of the other."""
    by_steps: dict[int, list[EvaluationReport]] = {}
    for report in map(evaluation, parts):
        by_steps.setdefault(_steps(report), []).append(report)
    least, most = min(by_steps), max(by_steps)
    names = f"T = {most} and {least}"
    text = "with each T the validation is above chance by more than its interval"
    claims = [above_chance(text, parts)]
    if least == most:
        return claims
    if full:
        at = (
            max(found.checkpoint_step for found in by_steps[most]),
            min(found.checkpoint_step for found in by_steps[least]),
        )
        return [
            *claims,
            Claim(
                text="more inner steps reach the best validation in fewer hyper-iterations",
                holds=at[0] < at[1],
                found=f"{names}: {at[0]} and {at[1]}",
            ),
        ]
    last = min(by_steps[most], key=lambda found: found.score.accuracy)
    first = max(by_steps[least], key=lambda found: found.score.accuracy)
    return [
        *claims,
        Claim(
            text="more inner steps are further after as many hyper-iterations, by more than the "
            "sum of both intervals",
            holds=lead(last, first) > 0,
            found=f"{names}: {percent(last)} and {percent(first)} %",
        ),
    ]


def _draw(named: Named) -> Figure:
    parts = [part for _, part in named]
    figure = new_figure(9.6, 4.0, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_own(left, parts)
    _draw_others(right, parts)
    for axes in (left, right):
        axes.set_ylabel("validation accuracy, %")
    tidy_axes(left, right)
    return figure


def _draw_own(axes: Axes, parts: Sequence[Part]) -> None:
    """Draw the accuracy of each training with its own T, as the paper does."""
    reports = [evaluation(part) for part in parts]
    for report, colour in zip(reports, _colours(parts), strict=True):
        at = (_steps(report), 100 * report.score.accuracy)
        axes.errorbar(*at, yerr=100 * report.score.ci95, color=colour, marker="o", capsize=3)
        note = f"at {report.checkpoint_step}"
        axes.annotate(note, at, (6, 6), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xticks(sorted({_steps(report) for report in reports}))
    axes.set_xlabel("T, in training and validation")
    axes.set_title("best validation, and its hyper-iteration", fontsize=11)
    axes.margins(x=0.15, y=0.15)


def _draw_others(axes: Axes, parts: Sequence[Part]) -> None:
    """Draw what each training comes to with the other T."""
    for part, colour in zip(parts, _colours(parts), strict=True):
        report = evaluation(part)
        points = [(p.inner.steps, p.score.accuracy) for p in report.curve if p.score is not None]
        x, y = [steps or 0 for steps, _ in points], [100 * accuracy for _, accuracy in points]
        label = f"T = {report.inner.steps}"
        axes.plot(x, y, color=colour, marker=".", linewidth=1.4, label=label)
    axes.set_xticks(TRIED)
    axes.set_xlabel("T in validation")
    axes.legend(title="trained with", frameon=False, fontsize=9)


def _colours(parts: Sequence[Part]) -> list[str]:
    kinds = sorted({part.result["trained_inner_steps"] for part in parts})
    return [
        CLASS_COLOURS[kinds.index(part.result["trained_inner_steps"]) % len(CLASS_COLOURS)]
        for part in parts
    ]


ITEM = Item(
    name="figure6",
    title="Meta-validation of T",
    paper=TEXT.paper,
    seeds={Scale.QUICK: 1, Scale.FULL: 1},
    run=run,
    data=(MINI, OMNIGLOT),
    cells=tuple(CELLS),
    trains=True,
    fixed=("method", "inner.steps"),
    shows=True,
)
