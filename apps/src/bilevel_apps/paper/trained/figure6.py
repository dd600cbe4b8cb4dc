"""Figure 6: the meta-validation of T, the number of inner steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bilevel_apps.drawing.style import CLASS_COLOURS, INK, new_figure, tidy_axes
from bilevel_apps.evaluate.curve import best_of
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.trained.cells import Cell, cost_of, data_name, score_cells, unseen
from bilevel_apps.paper.trained.report import (
    INTERVAL,
    MINI,
    OMNIGLOT,
    above_chance,
    lead,
    percent,
    preset_for,
    small_store,
)
from bilevel_meta.methods.hyper_representation import InnerLoop

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ITEM"]

PRESETS = {OMNIGLOT: "paper/omniglot-5way-1shot", MINI: "paper/mini-imagenet-rn-5way-1shot"}
PAPER = {3: 42_000, 5: 40_000, 8: 22_000, 12: 15_000}
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
    return Report(
        rows=[_row(part) for part in parts],
        details=[row for part in parts for row in _curve(part)],
        claims=_claims(parts, full=work.full),
        picture=partial(_draw, parts),
        settings={
            "data": data_name(store),
            "preset": preset,
            **{cell.name: ", ".join(cell.settings) for cell in cells},
            "scored on": f"{EPISODES} episodes of val, not those that the checkpoint was chosen on",
            "maximum": _maximum(parts),
            "interval": INTERVAL,
            "seeds": work.seeds,
        },
        cost=cost_of(parts),
        differs=DIFFERS + (() if work.full else QUICK),
        metrics={
            f"{name}/accuracy": fmean(part.result["accuracy"] for part in those)
            for name, those in found.items()
        },
    )


DIFFERS = (
    "The paper's accuracies are in its picture alone, so that only the hyper-iterations at which "
    "its trainings were stopped stand beside ours.",
    "Beside the accuracy with the T of the training, each training is scored with every other T.",
    "The network is RN, as in the paper, unless `--set model.name` says otherwise: C4L, which is "
    "much less work, with the paper's step size for it, `--set inner.lr=0.01`.",
)
QUICK = (
    "This is the quick scale: a narrow network on Omniglot and a training of seconds, of the same "
    "length for each T. The paper stops each where its validation is best; here those that need "
    "fewer hyper-iterations are further after the same number.",
)


def _maximum(parts: Sequence[Part]) -> str:
    """Return the T whose own training has the highest accuracy, and that."""
    best = max((part.result for part in parts), key=lambda found: found["accuracy"])
    return f"T = {best['steps']}, {percent(best)} %"


def _row(part: Part) -> Row:
    found = part.result
    best = best_of(found["curve"], InnerLoop(found["steps"], found["lr"]))
    paper = found["data"] == MINI
    return {
        "T": found["steps"],
        "stopped at, paper, RN": PAPER.get(found["steps"]) if paper else None,
        "best at": found["checkpoint_step"],
        "hyper-iterations": found.get("hyper_iterations"),
        "accuracy": 100 * found["accuracy"],
        "±": 100 * found["ci95"],
        "best T": best["steps"],
        "with the best T": 100 * best["accuracy"],
        "normalisation": found["norm"],
        "seed": found["trained_seed"],
        "checkpoint": found["checkpoint_sha256"][:12],
    }


def _curve(part: Part) -> list[Row]:
    return [
        {
            "trained with": part.result["steps"],
            "seed": part.result["trained_seed"],
            "T": row["steps"],
            "accuracy": row["accuracy"],
            "ci95": row["ci95"],
        }
        for row in part.result["curve"]
    ]


def _claims(parts: Sequence[Part], *, full: bool) -> list[Claim]:
    """Compare the least T with the largest: the best seed of the one, the worst of the other."""
    by_steps: dict[int, list[Mapping[str, Any]]] = {}
    for part in parts:
        by_steps.setdefault(part.result["steps"], []).append(part.result)
    least, most = min(by_steps), max(by_steps)
    names = f"T = {most} and {least}"
    text = "with each T the validation is above chance by more than its interval"
    claims = [above_chance(text, parts)]
    if least == most:
        return claims
    if full:
        at = (
            max(found["checkpoint_step"] for found in by_steps[most]),
            min(found["checkpoint_step"] for found in by_steps[least]),
        )
        return [
            *claims,
            Claim(
                text="more inner steps reach the best validation in fewer hyper-iterations",
                holds=at[0] < at[1],
                found=f"{names}: {at[0]} and {at[1]}",
            ),
        ]
    last = min(by_steps[most], key=lambda found: found["accuracy"])
    first = max(by_steps[least], key=lambda found: found["accuracy"])
    return [
        *claims,
        Claim(
            text="more inner steps are further after as many hyper-iterations, by more than the "
            "sum of both intervals",
            holds=lead(last, first) > 0,
            found=f"{names}: {percent(last)} and {percent(first)} %",
        ),
    ]


def _draw(parts: Sequence[Part]) -> Figure:
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
    for part, colour in zip(parts, _colours(parts), strict=True):
        found = part.result
        at = (found["steps"], 100 * found["accuracy"])
        axes.errorbar(*at, yerr=100 * found["ci95"], color=colour, marker="o", capsize=3)
        note = f"at {found['checkpoint_step']}"
        axes.annotate(note, at, (6, 6), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xticks(sorted({part.result["steps"] for part in parts}))
    axes.set_xlabel("T, in training and validation")
    axes.set_title("best validation, and its hyper-iteration", fontsize=11)
    axes.margins(x=0.15, y=0.15)


def _draw_others(axes: Axes, parts: Sequence[Part]) -> None:
    """Draw what each training comes to with the other T."""
    for part, colour in zip(parts, _colours(parts), strict=True):
        rows = [row for row in part.result["curve"] if row["accuracy"] is not None]
        x, y = [row["steps"] for row in rows], [100 * row["accuracy"] for row in rows]
        label = f"T = {part.result['steps']}"
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
    paper=(
        "Accuracy on the validation classes of mini-ImageNet against T, the number of inner steps, "
        "with RN (Figure 6). Early stopping halted the training after 42,000, 40,000, 22,000 and "
        "15,000 hyper-iterations for T = 3, 5, 8 and 12: with more inner steps, fewer "
        "hyper-iterations are needed."
    ),
    seeds={Scale.QUICK: 1, Scale.FULL: 1},
    run=run,
    data=(MINI, OMNIGLOT),
    cells=tuple(CELLS),
    trains=True,
    fixed=("method", "inner.steps"),
    shows=True,
)
