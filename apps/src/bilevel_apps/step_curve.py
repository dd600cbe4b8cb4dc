"""Accuracy against T, the number of inner steps, on the same episodes (Figure 6)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel_apps.errors import InputError
from bilevel_apps.files import write_whole
from bilevel_apps.head_scores import HeadScores
from bilevel_apps.report import warn
from bilevel_apps.scoring import score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["best_of", "curve_of", "draw_curve", "picture_path"]

Row = dict[str, Any]


def curve_of(found: HeadScores, own: int) -> list[Row]:
    """Return for each T its accuracy and its difference to the run's own T, each with ci95.

    The difference is taken episode by episode, so that what episodes have in common (a hard one is
    hard for every T) is not in its interval. Where the inner runs diverge both are None.

    Args:
        found: accuracies of the same episodes, by T; the run's own among them.
        own: the run's own T.
    """
    rows: list[Row] = []
    for steps in sorted({*found.accuracies, *found.diverged}):
        if steps in found.diverged:
            rows.append({"steps": steps, "accuracy": None, "ci95": None, "difference": None})
            continue
        values = found.accuracies[steps]
        whole, paired = score(values), score(values - found.accuracies[own])
        rows.append(
            {
                "steps": steps,
                "accuracy": whole.accuracy,
                "ci95": whole.ci95,
                "difference": {"accuracy": paired.accuracy, "ci95": paired.ci95},
            }
        )
    return rows


def best_of(curve: Sequence[Row], own: int) -> Row:
    """Return the row of highest accuracy; of equal ones the run's own T, or the fewest steps."""
    sound = [row for row in curve if row["accuracy"] is not None]
    return max(sound, key=lambda row: (row["accuracy"], row["steps"] == own, -row["steps"]))


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
    """Write a picture of a report's curve: accuracy with its 95 % interval, own and best T marked.

    Raises:
        RunError: it cannot be written.
    """
    from bilevel_apps.pictures import new_figure, png_of

    figure = new_figure(5.2, 3.8, layout="constrained")
    axes = figure.subplots()
    _draw_accuracies(axes, report["curve"], report["steps"])
    axes.set_title(
        f"{report['way']}-way {report['shot']}-shot, {report['episodes']} episodes of "
        f"{report['split']}",
        fontsize=11,
    )
    content = png_of(figure)
    write_whole(path, lambda scratch: scratch.write_bytes(content))


def _draw_accuracies(axes: Axes, curve: Sequence[Row], own: int) -> None:
    from bilevel_apps.pictures import BLUE, INK, VERMILLION

    rows, best = [row for row in curve if row["accuracy"] is not None], best_of(curve, own)
    steps = [row["steps"] for row in rows]
    low, high = ([100 * (row["accuracy"] + side * row["ci95"]) for row in rows] for side in (-1, 1))
    percent = [100 * row["accuracy"] for row in rows]
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95 % interval")
    axes.plot(steps, percent, color=BLUE, marker="o", markersize=4.5, linewidth=1.6)
    name = f"best, T = {best['steps']}"
    at = ([best["steps"]], [100 * best["accuracy"]])
    axes.plot(*at, color=VERMILLION, marker="D", markersize=8, linestyle="none", label=name)
    axes.axvline(own, color=INK, linewidth=1, linestyle=":", label=f"the run's own, T = {own}")
    for row in curve:
        if row["accuracy"] is None:
            axes.plot([], [], linestyle="none", label=f"T = {row['steps']} diverges")
    axes.set_xticks(steps)
    axes.set_xlabel("T, inner steps")
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False, fontsize=9)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
