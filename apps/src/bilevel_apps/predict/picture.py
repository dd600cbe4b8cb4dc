"""A drawing of what was learned from, and of what each query was taken for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bilevel_apps.drawing.style import BLUE, INK, new_figure, place_image, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_prediction"]

Pixels = NDArray[np.uint8]
Ranked = Sequence[tuple[str, float]]

GREY, PALE, FAINT = "#5f6368", "#9aa0a6", "#eceef0"
MOST_CLASSES, MOST_SHOTS, MOST_QUERIES = 40, 5, 60
COLUMNS = 3  # of queries
# Lengths in inches.
MARGIN, HEAD, NAME, THUMB, GAP, BARS = 0.3, 0.75, 1.25, 0.62, 0.1, 2.1
ROW, LINE, NOTE = THUMB + 0.14, THUMB / 3, 0.46


def draw_prediction(
    *,
    support: Mapping[str, Pixels],
    query: Mapping[str, tuple[Pixels, Ranked]],
    inverted: bool,
    total: int | None = None,
) -> bytes:
    """Return a PNG: a row of images a class on the left, the queries with their bars on the right.

    Args:
        support: images (k, height, width, channels) of each class.
        query: of each file an image and its most probable labels, the first first.
        inverted: the images hold dark ink as bright, and are shown as they were.
        total: queries on all pages, if these are one of several.
    """
    queries = list(query.items())[:MOST_QUERIES]
    classes = _classes(support, queries)
    columns = min(COLUMNS, len(queries))
    shots = min(MOST_SHOTS, max(len(images) for _, images in classes))
    left = NAME + shots * (THUMB + GAP) + 0.35
    lines = max(3, *(len(ranked) for _, (_, ranked) in queries))
    card, tall = THUMB + GAP + BARS + 0.3, lines * LINE + NOTE
    rows = max(len(classes) * ROW, -(-len(queries) // columns) * tall)
    # Room for the headings, where there is one query only.
    width, height = 2 * MARGIN + left + max(columns * card, 3.6), HEAD + rows + MARGIN
    figure = new_figure(width, height)
    sheet = _sheet(figure, width, height)
    _heading(sheet, MARGIN, "Learned from", _shown(len(classes), len(support), "class", "es"))
    _heading(
        sheet, MARGIN + left, "Predicted", _shown(len(queries), total or len(query), "picture", "s")
    )
    for row, (name, images) in enumerate(classes):
        _draw_class(sheet, HEAD + row * ROW, name, images, inverted)
    for number, (name, (image, ranked)) in enumerate(queries):
        row, column = divmod(number, columns)
        place = MARGIN + left + column * card, HEAD + row * tall
        _draw_query(sheet, place, name, image, ranked, inverted)
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn with boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        return png_of(figure)


def _classes(
    support: Mapping[str, Pixels], queries: Sequence[tuple[str, tuple[Pixels, Ranked]]]
) -> list[tuple[str, Pixels]]:
    """Return the classes that there is room for, those of the queries' labels first."""
    if len(support) <= MOST_CLASSES:
        return list(support.items())
    found = {ranked[0][0] for _, (_, ranked) in queries}
    by_need = sorted(support, key=lambda name: name not in found)[:MOST_CLASSES]
    return [(name, images) for name, images in support.items() if name in set(by_need)]


def _sheet(figure: Figure, width: float, height: float) -> Axes:
    """Return axes over a whole figure, in inches from its upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_autoscale_on(False)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return axes


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    # Names are shown as they are: a dollar sign begins no formula.
    usual: dict[str, Any] = {"va": "center", "fontsize": 9, "color": INK, "parse_math": False}
    axes.text(x, y, text, **(usual | style))


def _heading(axes: Axes, x: float, text: str, note: str) -> None:
    _write(axes, x, 0.32, text, fontsize=13, fontweight="bold")
    _write(axes, x, 0.54, note, color=GREY, fontsize=8)


def _draw_image(axes: Axes, x: float, y: float, image: Pixels, inverted: bool) -> None:
    place_image(axes, 255 - image if inverted else image, x, y, THUMB, {"edgecolor": FAINT})


def _draw_class(axes: Axes, y: float, name: str, images: Pixels, inverted: bool) -> None:
    _write(axes, MARGIN, y + THUMB / 2, _short(name, 17))
    for k, image in enumerate(images[:MOST_SHOTS]):
        _draw_image(axes, MARGIN + NAME + k * (THUMB + GAP), y, image, inverted)
    if len(images) > MOST_SHOTS:
        x = MARGIN + NAME + MOST_SHOTS * (THUMB + GAP)
        _write(axes, x, y + THUMB / 2, f"+{len(images) - MOST_SHOTS}", color=GREY, fontsize=8)


def _draw_query(
    axes: Axes,
    place: tuple[float, float],
    name: str,
    image: Pixels,
    ranked: Ranked,
    inverted: bool,
) -> None:
    x, y = place
    _draw_image(axes, x, y, image, inverted)
    below = y + max(3, len(ranked)) * LINE + 0.12
    _write(axes, x, below, _short(name, 40), color=GREY, fontsize=7)
    x += THUMB + GAP
    for k, (label, p) in enumerate(ranked):
        top, best = y + k * LINE, k == 0
        for length, colour in ((BARS, FAINT), (BARS * p, BLUE if best else PALE)):
            axes.barh(top + 0.82 * LINE, length, 0.24 * LINE, left=x, color=colour)
        style = {"fontsize": 7, "fontweight": "bold" if best else "normal"}
        _write(axes, x, top + 0.36 * LINE, _short(label, 26), **style)
        _write(axes, x + BARS, top + 0.36 * LINE, f"{100 * p:.1f} %", ha="right", **style)


def _shown(count: int, total: int, what: str, plural: str) -> str:
    counted = f"{total} {what}{'' if total == 1 else plural}"
    return counted if count == total else f"{count} of {counted}"


def _short(name: str, most: int) -> str:
    shown = "".join(c if c.isprintable() else "�" for c in name)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
