"""The picture of a curve: accuracy against T and η."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bilevel_apps.drawing.style import BLUE, INK, VERMILLION, new_figure, png_of, tidy_axes
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.curve import best_of
from bilevel_apps.evaluate.report import CurvePoint, EvaluationReport
from bilevel_apps.system.files import write_whole
from bilevel_apps.system.terminal import warn
from bilevel_meta.methods.hyper_representation import InnerLoop

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curve", "picture_path"]


def picture_path(folder: Path, split: str, given: Path | None) -> Path | None:
    """Return where to draw: as given, or in the run's folder if it can be written.

    Raises:
        InputError: the given file cannot be written.
    """
    path = given or folder / f"steps-{split}.png"
    if given is not None and given.suffix.lower() != ".png":
        raise InputError(f"`plot`={given}: expected the name of a PNG file, such as steps.png")
    if os.access(path.parent, os.W_OK | os.X_OK) and not path.is_dir():
        return path
    if given is not None:
        raise InputError(f"`plot`={given}: cannot write there: choose another place")
    warn(f"{path}: cannot write there, so there is no picture: choose a place with --plot")
    return None


def draw_curve(path: Path, report: EvaluationReport) -> None:
    """Write a picture of a report's curve: accuracy with its 95 % interval, own and best marked.

    Raises:
        RunError: it cannot be written.
    """
    figure = new_figure(5.2, 3.8, layout="constrained")
    axes = figure.subplots()
    _draw_accuracies(axes, report.curve, report.inner)
    axes.set_title(
        f"{report.way}-way {report.shot}-shot, {report.score.episodes} episodes of {report.split}",
        fontsize=11,
    )
    content = png_of(figure)
    write_whole(path, lambda scratch: scratch.write_bytes(content))


def _draw_accuracies(axes: Axes, curve: Sequence[CurvePoint], own: InnerLoop) -> None:
    """Draw a line for each η over T, or one over η where there is one T."""
    from matplotlib import colormaps

    for point in curve:
        if point.inner.steps is None and point.score is not None:  # no place on an axis of T
            level = 100 * point.score.accuracy
            axes.axhline(level, color=INK, linewidth=1, label="heads at their optimum")
    curve = [point for point in curve if point.inner.steps is not None]
    across = "steps" if _several(curve, "steps") else "lr"
    along = "lr" if across == "steps" else "steps"
    lines = _lines(curve, along)
    alone = len(lines) == 1
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(lines)))
    for (value, points), shade in zip(lines.items(), shades, strict=True):
        x = [getattr(point.inner, across) for point in points]
        y, ci95 = (100 * np.array(pair) for pair in zip(*map(_numbers, points), strict=True))
        colour = BLUE if alone else shade
        name = None if alone else _value(along, value)
        axes.plot(x, y, color=colour, marker="o", markersize=4.5, linewidth=1.6, label=name)
        band, label = (0.18, "95 % interval") if alone else (0.08, None)
        axes.fill_between(x, y - ci95, y + ci95, color=colour, alpha=band, linewidth=0, label=label)
    best = best_of(curve, own)
    at = ([getattr(best.inner, across)], [100 * _numbers(best)[0]])
    name = "best, " + _name(best.inner, curve)
    axes.plot(*at, color=VERMILLION, marker="D", markersize=8, linestyle="none", label=name)
    if own.steps is not None:
        _mark_own(axes, curve, own, across, alone=alone)
    for point in curve:
        if point.score is None:
            label = f"{_name(point.inner, curve)} diverges"
            axes.plot([], [], linestyle="none", label=label)
    _set_axes(axes, sorted({getattr(point.inner, across) for point in curve}), across)


def _numbers(point: CurvePoint) -> tuple[float, float]:
    """Return accuracy and half its interval; not numbers where the inner runs diverge."""
    return (np.nan, np.nan) if point.score is None else (point.score.accuracy, point.score.ci95)


def _lines(curve: Sequence[CurvePoint], along: str) -> dict[float, list[CurvePoint]]:
    """Return the points that a line is drawn through, by what they have in common."""
    lines: dict[float, list[CurvePoint]] = {}
    for point in curve:
        if point.score is not None:
            lines.setdefault(getattr(point.inner, along), []).append(point)
    return lines


def _mark_own(
    axes: Axes, curve: Sequence[CurvePoint], own: InnerLoop, across: str, *, alone: bool
) -> None:

    name = f"the run's own, {_name(own, curve)}"
    (point,) = (point for point in curve if point.inner == own)
    x = getattr(own, across)
    if alone:
        axes.axvline(x, color=INK, linewidth=1, linestyle=":", label=name)
    else:
        at = ([x], [100 * _numbers(point)[0]])
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


def _several(curve: Sequence[CurvePoint], key: str) -> bool:
    return len({getattr(point.inner, key) for point in curve}) > 1


def _name(loop: InnerLoop, curve: Sequence[CurvePoint]) -> str:
    """Return what tells a row of a curve from the others."""
    varied = [key for key in ("steps", "lr") if _several(curve, key)]
    return ", ".join(_value(key, getattr(loop, key)) for key in varied)


def _value(key: str, value: float) -> str:
    return f"T = {value}" if key == "steps" else f"η = {value:.3g}"
