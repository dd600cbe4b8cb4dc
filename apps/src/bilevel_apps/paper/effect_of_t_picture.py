"""How the curves of section 5.1 are drawn: a colour, a line and a mark for each T."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bilevel_apps.paper.effect_of_t import Study
from bilevel_apps.pictures import BLUE, CLASS_COLOURS, GREEN, INK, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["STYLES", "draw_curves", "label", "tidy"]

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


def draw_curves(axes: Axes, study: Study, figure: str, *, factor: float = 1.0) -> None:
    """Draw a figure against hyper-iterations for each T: the mean, and thin lines for data sets.

    Args:
        axes: where.
        study: what was computed.
        figure: `f_T`, or an accuracy.
        factor: by which it is multiplied.
    """
    for name, style in STYLES.items():
        line = {key: style[key] for key in ("color", "linestyle")}
        means = [factor * point.mean for point in study.curve(name, figure)]
        axes.plot(study.looks, means, **line, linewidth=1.5, label=label(name))
        for path in study.paths(name, figure):
            axes.plot(study.looks, [factor * value for value in path], **line, **THIN)
    axes.set_xlabel(f"hyper-iterations (thin lines: {study.seeds} data sets)")


def tidy(*panels: Axes) -> None:
    """Take away what says nothing."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
