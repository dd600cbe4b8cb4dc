"""A wall of nearest neighbours: random queries, and the images that the representation puts by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.drawing.style import DPI, GREEN, INK, VERMILLION, new_figure, png_of, show_image
from bilevel_apps.embed.samples import Embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_wall", "nearest"]

RIGHT: dict[str, Any] = {"edgecolor": GREEN, "linewidth": 1.8}
WRONG: dict[str, Any] = {"edgecolor": VERMILLION, "linewidth": 1.1, "linestyle": (0, (3, 2))}
QUERY: dict[str, Any] = {"edgecolor": INK, "linewidth": 1.1}
CELL, GAP = 1.22, 0.5  # an image takes 1
HEAD = 0.5  # inches, for the text above


def nearest(
    features: NDArray[np.float32], queries: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return the numbers of the `count` nearest other images of each query, nearest first.

    The distance is ‖h(x) - h(x′)‖, by exact search in float64; of equal ones the lower number
    comes first.

    Args:
        features: (n, dim).
        queries: (m,), numbers of images.
        count: at most n - 1.

    Returns:
        (m, count).

    Cost: m · n distances.
    """
    points = torch.from_numpy(features).double()
    distances = torch.cdist(
        points[queries], points, compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy()
    distances[np.arange(len(queries)), queries] = np.inf
    return np.argsort(distances, axis=1, kind="stable")[:, :count].astype(np.int64)


def draw_wall(
    images: Embedded,
    queries: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    *,
    split: str,
    dpi: int = DPI,
) -> bytes:
    """Return a PNG file: a row a query, the query at the left, then its neighbours.

    Neighbours of the query's class have a solid frame and a tick, others a dashed frame and a
    cross, so that nothing depends on seeing colours.

    Args:
        images: what was searched.
        queries: (m,), numbers of images.
        neighbours: (m, count), likewise.
        split: the name of what was searched.
        dpi: dots an inch.
    """
    right = images.labels[neighbours] == images.labels[queries][:, None]
    rows, columns = neighbours.shape
    width, height = CELL * (columns + 1) + GAP, CELL * rows
    inch = 7.5 / max(width, 10)
    figure = new_figure(max(inch * width, 5.5), inch * height + HEAD)
    axes = figure.add_axes((0, 0, inch * width / figure.get_figwidth(), 1))
    for row, query in enumerate(queries):
        show_image(axes, images.pixels[query], 0, CELL * row, 1, QUERY)
        for column, found in enumerate(neighbours[row]):
            x, good = CELL * (column + 1) + GAP, bool(right[row, column])
            show_image(axes, images.pixels[found], x, CELL * row, 1, RIGHT if good else WRONG)
            _mark(axes, x + 1, CELL * row, good=good)
    margin = (CELL - 1) / 2
    axes.set(xlim=(-margin, width - margin), ylim=(height - margin, -margin - HEAD / inch))
    axes.text(0.5, -0.16, "query", ha="center", va="bottom", fontsize=7.5, color=INK)
    text = "nearest first: ✓ solid frame, same class; ✗ dashed frame, another class"
    axes.text(CELL + GAP, -0.16, text, va="bottom", fontsize=7.5, color=INK)
    axes.set_axis_off()
    title = (
        f"Nearest neighbours among {len(images.labels):,} images of {split}: "
        f"{right.sum()} of {right.size} of the query's class"
    )
    axes.text(0, -HEAD / inch, title, va="top", fontsize=9, color=INK)
    return png_of(figure, dpi)


def _mark(axes: Axes, x: float, y: float, *, good: bool) -> None:
    """Put a tick or a cross into the upper right corner of an image."""
    axes.text(
        x,
        y,
        "✓" if good else "✗",
        ha="center",
        va="center",
        fontsize=5.5,
        fontweight="bold",
        color="white",
        bbox={
            "boxstyle": "circle,pad=0.18" if good else "square,pad=0.18",
            "facecolor": GREEN if good else VERMILLION,
            "edgecolor": "white",
            "linewidth": 0.6,
        },
    )
