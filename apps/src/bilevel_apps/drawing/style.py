"""What all drawings share: colours that everybody can tell apart, and how an image is shown."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "CLASS_COLOURS",
    "DPI",
    "GREEN",
    "INK",
    "VERMILLION",
    "new_figure",
    "place_image",
    "png_of",
    "readable",
    "show_image",
    "text_on",
    "tidy_axes",
]

# Source: Color Universal Design (Okabe and Ito, 2008). Yellow, too light on white, is left out.
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
CLASS_COLOURS = (BLUE, VERMILLION, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK = "#222222"
DPI = 200  # a text column of paper, 19 cm, at the fineness of print


def tidy_axes(*panels: Axes) -> None:
    """Take away the lines of axes that say nothing, and make the numbers small."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Return an empty white figure of so many inches, which no window knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Figure, dpi: int = DPI) -> bytes:
    """Return the figure as a PNG file; the same figure gives the same bytes."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def readable(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels (…, height, width, channels) with dark ink on light paper.

    Stores hold the ink of grey images as white; people read dark on light.
    """
    return 255 - pixels if pixels.shape[-1] == 1 else pixels


def text_on(colour: str) -> str:
    """Return white or ink, whichever is easier to read on a colour such as `#0072b2`."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else INK


def show_image(
    axes: Axes, pixels: NDArray[np.uint8], x: float, y: float, side: float, frame: Any
) -> None:
    """Draw an image of a store so that people can read it; arguments as of `place_image`."""
    place_image(axes, readable(pixels), x, y, side, frame)


def place_image(
    axes: Axes, pixels: NDArray[np.uint8], x: float, y: float, side: float, frame: Any
) -> None:
    """Draw an image (height, width, channels) with a frame, its upper left corner at (x, y).

    Args:
        axes: whose y axis points down.
        pixels: a square image.
        x: in the units of the axes.
        y: likewise.
        side: likewise.
        frame: what `matplotlib.patches.Rectangle` takes to draw the frame.
    """
    from matplotlib.patches import Rectangle

    axes.imshow(
        pixels[..., 0] if pixels.shape[-1] == 1 else pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(x, x + side, y + side, y),
        interpolation="antialiased",
    )
    axes.add_patch(Rectangle((x, y), side, side, fill=False, joinstyle="miter", **frame))
