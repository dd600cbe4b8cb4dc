"""How the curves of section 5.1 are drawn: a colour, a line and a mark for each T."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bilevel_apps.drawing.style import (
    BLUE,
    CLASS_COLOURS,
    GREEN,
    INK,
    VERMILLION,
    new_figure,
    tidy_axes,
)
from bilevel_apps.paper.effect_of_t.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["STYLES", "beside_curves", "label"]

STYLES: dict[str, dict[str, Any]] = {
    "1": {"color": VERMILLION, "linestyle": "-", "marker": "o"},
    "4": {"color": CLASS_COLOURS[4], "linestyle": "-", "marker": "s"},
    "16": {"color": GREEN, "linestyle": "-", "marker": "^"},
    "64": {"color": CLASS_COLOURS[5], "linestyle": "-", "marker": "D"},
    "256": {"color": BLUE, "linestyle": "-", "marker": "v"},
    "exact": {"color": INK, "linestyle": "--", "marker": "x"},
}


THIN: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.4}
"""Of each data set, beside their mean."""


def label(name: str) -> str:
    """Return a row's name for a legend."""
    return f"T = {name}" if name.isdigit() else name


def beside_curves(
    draw: Callable[[Axes, Study], None],
    study: Study,
    figure: str,
    axis: str,
    *,
    factor: float = 1.0,
) -> Figure:
    """Draw the curves of a figure on the left, and something else on the right.

    Args:
        draw: draws the right panel.
        study: what was computed.
        figure: `f_T`, or an accuracy: what the curves show against hyper-iterations.
        axis: what it is called.
        factor: by which it is multiplied.
    """
    picture = new_figure(9.6, 4.2, layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(1.3, 1))
    _draw_curves(left, study, figure, factor)
    left.set_ylabel(axis)
    draw(right, study)
    tidy_axes(left, right)
    picture.legend(
        *left.get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        ncols=len(STYLES),
        loc="outside upper center",
    )
    return picture


def _draw_curves(axes: Axes, study: Study, figure: str, factor: float) -> None:
    """Draw a figure for each T: the mean, and thin lines for data sets."""
    for name, style in STYLES.items():
        line = {key: style[key] for key in ("color", "linestyle")}
        means = [factor * point.mean for point in study.curve(name, figure)]
        axes.plot(study.looks, means, **line, linewidth=1.5, label=label(name))
        for path in study.paths(name, figure):
            axes.plot(study.looks, [factor * value for value in path], **line, **THIN)
    axes.set_xlabel(f"hyper-iterations (thin lines: {study.seeds} data sets)")
