"""Drawings for people: the pairs of Figure 5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

__all__ = ["Pair", "draw_pairs"]

BLUE, GREEN = "#0055a4", "#7bc043"  # differ in lightness too, for eyes that see no hue
INK = "#222222"


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images (height, width, channels), their features (dim,) and the features' distance."""

    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    features: tuple[NDArray[np.float32], NDArray[np.float32]]
    distance: float


def draw_pairs(
    path: Path,
    nearest: list[Pair],
    farthest: list[Pair],
    *,
    names: tuple[str, str],
    components: NDArray[np.int64],
) -> None:
    """Write a picture: a row of nearest and a row of farthest pairs, with bars of their features.

    Args:
        path: a PNG file.
        nearest: pairs, nearest first.
        farthest: as many, farthest first.
        names: what the first (blue) and the second (green) image of each pair come from.
        components: which components of the features the bars show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(nearest), len(farthest))
    figure = Figure(figsize=(2.3 * columns, 5.4), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    shown = [pair.features[k][components] for pair in nearest + farthest for k in (0, 1)]
    limit = 1.1 * max(float(np.abs(values).max()) for values in shown)
    title = f"Nearest in the representation: {names[0]} (blue) and {names[1]} (green)"
    for text, pairs, top in ((title, nearest, 1.0), ("Farthest apart", farthest, 0.5)):
        figure.text(0.5, top - 0.03, text, ha="center", va="top", fontsize=12, color=INK)
        grid = figure.add_gridspec(
            1, columns, left=0.02, right=0.98, top=top - 0.1, bottom=top - 0.45
        )
        for column, pair in enumerate(pairs):
            _draw_pair(figure, grid[0, column], pair, components, limit)
    figure.savefig(path, metadata={"Software": None})


def _draw_pair(
    figure: Figure, place: SubplotSpec, pair: Pair, components: NDArray[np.int64], limit: float
) -> None:
    grid = place.subgridspec(2, 2, height_ratios=(1.25, 1), wspace=0.06, hspace=0.06)
    for side, colour in enumerate((BLUE, GREEN)):
        _draw_image(figure.add_subplot(grid[0, side]), pair.images[side], colour)
    _draw_bars(figure.add_subplot(grid[1, :]), pair, components, limit)


def _draw_image(axes: Any, pixels: NDArray[np.uint8], colour: str) -> None:
    grey = pixels.shape[-1] == 1
    # Stores hold ink as white; people read dark on light.
    axes.imshow(255 - pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2.5)


def _draw_bars(axes: Any, pair: Pair, components: NDArray[np.int64], limit: float) -> None:
    at = np.arange(len(components))
    for values, colour, shift in zip(pair.features, (BLUE, GREEN), (-0.2, 0.2), strict=True):
        axes.bar(at + shift, values[components], width=0.4, color=colour, linewidth=0)
    low = -limit if min(float(f[components].min()) for f in pair.features) < 0 else 0.0
    axes.set_ylim(low, limit)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"distance {pair.distance:#.3g}", fontsize=9, color=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
