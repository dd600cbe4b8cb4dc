"""A map of a representation: images where a projection puts them, coloured by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bilevel_apps.drawing.style import CLASS_COLOURS, DPI, INK, new_figure, png_of, text_on
from bilevel_apps.embed.projection import Projection
from bilevel_apps.embed.samples import Embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["class_colour", "draw_map"]

WIDTH, HEIGHT = 7.5, 5.6
PLACE = (0.045, 0.05, 0.7, 0.87)  # of the map in the figure
SIDE = 0.042  # of an image, as a part of the map's width
LONGEST_NAME = 34


def class_colour(number: int) -> str:
    """Return the colour of the map's class `number`; they repeat, and so classes have numbers."""
    return CLASS_COLOURS[number % len(CLASS_COLOURS)]


def draw_map(
    images: Embedded,
    projection: Projection,
    *,
    names: list[str],
    split: str,
    dpi: int = DPI,
) -> bytes:
    """Return a PNG file.

    Args:
        images: with labels 0 … len(names) - 1.
        projection: of their features.
        names: of the classes.
        split: that the images are of.
        dpi: dots an inch.
    """
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_axes(PLACE)
    points = projection.points
    middle, (width, height) = _window(points)
    side = SIDE * width
    # In an order of chance, so that no class hides the others.
    for k in np.random.default_rng(0).permutation(len(points)):
        _draw_image(axes, images.pixels[k], points[k], side, class_colour(int(images.labels[k])))
    for number in range(len(names)):
        x, y = np.median(points[images.labels == number], axis=0)
        axes.text(x, y, str(number + 1), zorder=3, **_badge(number))
    axes.set(
        xlim=(middle[0] - width / 2, middle[0] + width / 2),
        ylim=(middle[1] - height / 2, middle[1] + height / 2),
        aspect="equal",
        xticks=[],
        yticks=[],
    )
    for spine in axes.spines.values():
        spine.set_edgecolor("#bbbbbb")
    axes.set_xlabel(projection.axes[0], fontsize=8, color=INK)
    axes.set_ylabel(projection.axes[1], fontsize=8, color=INK)
    title = (
        f"{projection.name} of the features of {len(points)} images of {len(names)} "
        f"random classes of {split}"
    )
    figure.text(0.045, 0.955, title, fontsize=9, color=INK)
    _draw_legend(figure.add_axes((0.76, 0.05, 0.235, 0.87)), names)
    return png_of(figure, dpi)


def _draw_image(
    axes: Axes,
    pixels: NDArray[np.uint8],
    point: NDArray[np.float64],
    side: float,
    colour: str,
) -> None:
    """Draw a grey image as ink of the class's colour, another in a frame of it."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    (x, y), half = point, side / 2
    shown = pixels
    if pixels.shape[-1] == 1:
        tint = (255 * np.array(to_rgb(colour))).astype(np.uint8)
        ink = np.broadcast_to(tint, (*pixels.shape[:2], 3))
        shown = np.concatenate([ink, pixels], axis=-1)
    else:
        frame = Rectangle(
            (x - half, y - half), side, side, fill=False, edgecolor=colour, linewidth=1.4, zorder=2
        )
        axes.add_patch(frame)
    extent = (x - half, x + half, y - half, y + half)
    axes.imshow(shown, extent=extent, interpolation="antialiased", zorder=2)


def _window(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return the middle of the points, and a width and height that show them all undistorted."""
    low, high = points.min(axis=0), points.max(axis=0)
    proportion = (PLACE[2] * WIDTH) / (PLACE[3] * HEIGHT)
    height = max(high[1] - low[1], (high[0] - low[0]) / proportion, 1e-12) * (1 + 3 * SIDE)
    return (low + high) / 2, (proportion * height, height)


def _badge(number: int) -> dict[str, Any]:
    return {
        "ha": "center",
        "va": "center",
        "fontsize": 7,
        "fontweight": "bold",
        "color": text_on(class_colour(number)),
        "bbox": {
            "boxstyle": "circle,pad=0.2",
            "facecolor": class_colour(number),
            "edgecolor": "white",
            "linewidth": 1,
        },
    }


def _draw_legend(axes: Axes, names: list[str]) -> None:
    axes.set(xlim=(0, 1), ylim=(max(len(names), 10), 0))
    axes.set_axis_off()
    for number, name in enumerate(names):
        axes.text(0.07, number + 0.5, str(number + 1), **_badge(number))
        short = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
        axes.text(
            0.16,
            number + 0.5,
            _broken(short),
            va="center",
            fontsize=7.5,
            color=INK,
            parse_math=False,
        )


def _broken(name: str, width: int = 20) -> str:
    """Return a name on two lines where it is long, broken after a slash or a blank."""
    if len(name) <= width:
        return name
    at = max(name.rfind(mark, 0, width) for mark in "/ _-")
    at = at if at > 0 else width - 1
    return f"{name[: at + 1]}\n{name[at + 1 :]}"
