"""Accuracy against T and η, how many inner steps of what size, on the same episodes (Figure 6)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel_apps.drawing.style import BLUE, INK, VERMILLION, new_figure, png_of, tidy_axes
from bilevel_apps.errors import InputError
from bilevel_apps.scoring.heads import HeadScores
from bilevel_apps.scoring.score import score
from bilevel_apps.system.files import write_whole
from bilevel_apps.system.terminal import warn
from bilevel_meta.methods.hyper_representation import InnerLoop

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["best_of", "by_steps", "curve_of", "draw_curve", "picture_path"]

Row = dict[str, Any]


def curve_of(found: HeadScores, own: InnerLoop, upright: HeadScores | None = None) -> list[Row]:
    """Return for each η and T the accuracy and its difference to the run's own, each with ci95.

    The difference is taken episode by episode, so that what episodes have in common (a hard one is
    hard for every T) is not in its interval. Where the inner runs diverge both are None.

    Args:
        found: accuracies of the same episodes; those with the run's own T and η among them.
        own: the run's own.
        upright: accuracies on upright classes alone, where others count too: a row has both.
    """
    rows: list[Row] = []
    loops = {*found.accuracies, *found.diverged}
    for loop in sorted(loops, key=lambda loop: (loop.lr, *by_steps(loop))):
        at = loop._asdict()
        if loop in found.diverged:
            rows.append({**at, "accuracy": None, "ci95": None, "difference": None})
            continue
        values = found.accuracies[loop]
        whole, paired = score(values), score(values - found.accuracies[own])
        rows.append(
            {
                **at,
                "accuracy": whole.accuracy,
                "ci95": whole.ci95,
                "difference": {"accuracy": paired.accuracy, "ci95": paired.ci95},
            }
        )
        if upright is not None and loop in upright.accuracies:
            alone = score(upright.accuracies[loop])
            rows[-1]["upright"] = {"accuracy": alone.accuracy, "ci95": alone.ci95}
    return rows


def by_steps(loop: InnerLoop) -> tuple[float, float]:
    """Return what sorts loops by T, the optimum last, and by η."""
    return math.inf if loop.steps is None else loop.steps, loop.lr


def best_of(curve: Sequence[Row], own: InnerLoop) -> Row:
    """Return the row of highest accuracy; of equal ones the run's own, or one of fewest steps."""

    def order(row: Row) -> tuple[float, bool, float, bool]:
        same = row["steps"] == own.steps, row["lr"] == own.lr
        return row["accuracy"], all(same), -by_steps(InnerLoop(row["steps"], 0.0))[0], same[1]

    return max((row for row in curve if row["accuracy"] is not None), key=order)


def picture_path(folder: Path, split: str, given: Path | None) -> Path | None:
    """Return where to draw: as given, or in the run's folder if it can be written.

    Raises:
        InputError: the given file cannot be written.
    """
    path = given or folder / f"steps-{split}.png"
    if given is not None and given.suffix.lower() != ".png":
        raise InputError(f"--plot {given}: expected the name of a PNG file, such as steps.png")
    if os.access(path.parent, os.W_OK | os.X_OK) and not path.is_dir():
        return path
    if given is not None:
        raise InputError(f"--plot {given}: cannot write there: choose another place")
    warn(f"{path}: cannot write there, so there is no picture: choose a place with --plot")
    return None


def draw_curve(path: Path, report: Mapping[str, Any]) -> None:
    """Write a picture of a report's curve: accuracy with its 95 % interval, own and best marked.

    Raises:
        RunError: it cannot be written.
    """
    figure = new_figure(5.2, 3.8, layout="constrained")
    axes = figure.subplots()
    _draw_accuracies(axes, report["curve"], InnerLoop(report["steps"], report["lr"]))
    axes.set_title(
        f"{report['way']}-way {report['shot']}-shot, {report['episodes']} episodes of "
        f"{report['split']}",
        fontsize=11,
    )
    content = png_of(figure)
    write_whole(path, lambda scratch: scratch.write_bytes(content))


def _draw_accuracies(axes: Axes, curve: Sequence[Row], own: InnerLoop) -> None:
    """Draw a line for each η over T, or one over η where there is one T."""
    from matplotlib import colormaps

    for row in [row for row in curve if row["steps"] is None]:  # no place on an axis of T
        axes.axhline(100 * row["accuracy"], color=INK, linewidth=1, label="heads at their optimum")
    curve = [row for row in curve if row["steps"] is not None]
    across = "steps" if _several(curve, "steps") else "lr"
    along = "lr" if across == "steps" else "steps"
    lines = _lines(curve, along)
    alone = len(lines) == 1
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(lines)))
    for (value, rows), shade in zip(lines.items(), shades, strict=True):
        x, y = [row[across] for row in rows], np.array([100 * row["accuracy"] for row in rows])
        ci95 = np.array([100 * row["ci95"] for row in rows])
        colour = BLUE if alone else shade
        name = None if alone else _value(along, value)
        axes.plot(x, y, color=colour, marker="o", markersize=4.5, linewidth=1.6, label=name)
        band, label = (0.18, "95 % interval") if alone else (0.08, None)
        axes.fill_between(x, y - ci95, y + ci95, color=colour, alpha=band, linewidth=0, label=label)
    best = best_of(curve, own)
    at = ([best[across]], [100 * best["accuracy"]])
    name = "best, " + _name(InnerLoop(best["steps"], best["lr"]), curve)
    axes.plot(*at, color=VERMILLION, marker="D", markersize=8, linestyle="none", label=name)
    if own.steps is not None:
        _mark_own(axes, curve, own, across, alone=alone)
    for row in curve:
        if row["accuracy"] is None:
            name = _name(InnerLoop(row["steps"], row["lr"]), curve)
            axes.plot([], [], linestyle="none", label=f"{name} diverges")
    _set_axes(axes, sorted({row[across] for row in curve}), across)


def _lines(curve: Sequence[Row], along: str) -> dict[float, list[Row]]:
    """Return the rows that a line is drawn through, by what they have in common."""
    lines: dict[float, list[Row]] = {}
    for row in curve:
        if row["accuracy"] is not None:
            lines.setdefault(row[along], []).append(row)
    return lines


def _mark_own(
    axes: Axes, curve: Sequence[Row], own: InnerLoop, across: str, *, alone: bool
) -> None:

    name = f"the run's own, {_name(own, curve)}"
    (row,) = (row for row in curve if (row["steps"], row["lr"]) == own)
    if alone:
        axes.axvline(row[across], color=INK, linewidth=1, linestyle=":", label=name)
    else:
        at = ([row[across]], [100 * row["accuracy"]])
        axes.plot(*at, "o", markersize=10, color=INK, markerfacecolor="none", label=name)


def _set_axes(axes: Axes, ticks: Sequence[float], across: str) -> None:
    if across == "lr" or (ticks[0] > 0 and ticks[-1] > 32 * ticks[0]):
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
    axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axes.set_xlabel("T, inner steps" if across == "steps" else "η, inner step size")
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False, fontsize=9)
    tidy_axes(axes)


def _several(curve: Sequence[Row], key: str) -> bool:
    return len({row[key] for row in curve}) > 1


def _name(loop: InnerLoop, curve: Sequence[Row]) -> str:
    """Return what tells a row of a curve from the others."""
    varied = [key for key in ("steps", "lr") if _several(curve, key)]
    return ", ".join(_value(key, getattr(loop, key)) for key in varied)


def _value(key: str, value: float) -> str:
    return f"T = {value}" if key == "steps" else f"η = {value:.3g}"
