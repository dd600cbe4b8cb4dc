"""The nearest and the farthest pairs across two episodes (Figure 5): found, and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.drawing.style import BLUE, DPI, GREEN, INK, new_figure, png_of, show_image
from bilevel_apps.embed.samples import Embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Pair", "draw_pairs", "extreme_pairs", "pairs_figure"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """An image of one episode beside one of another.

    Attributes:
        numbers: which image of each episode.
        images: (height, width, channels) each.
        features: (dim,) each.
        distance: of the features.
    """

    numbers: tuple[int, int]
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    features: tuple[NDArray[np.float32], NDArray[np.float32]]
    distance: float


def extreme_pairs(a: Embedded, b: Embedded, count: int) -> tuple[list[Pair], list[Pair]]:
    """Return the `count` nearest and farthest pairs (x of a, x′ of b).

    No image comes twice, and no pair of classes, so that the pairs show different things. A
    picture is not paired with itself, or with one of the same pixels.

    The distance is ‖h(x) - h(x′)‖, by exact search in float64. Cost: n_a · n_b distances.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Figure 5, which shows the first of each.
    """
    # Not through inner products: those lose the digits of small distances.
    distances = torch.cdist(
        torch.from_numpy(a.features).double(),
        torch.from_numpy(b.features).double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).numpy()
    order = np.argsort(distances, axis=None, kind="stable")
    return (
        _without_repetition(a, b, distances, order, count),
        _without_repetition(a, b, distances, order[::-1], count),
    )


def _without_repetition(
    a: Embedded,
    b: Embedded,
    distances: NDArray[np.float64],
    order: NDArray[np.int64],
    count: int,
) -> list[Pair]:
    pairs: list[Pair] = []
    used: set[tuple[str | int, ...]] = set()
    for flat in order:
        i, j = divmod(int(flat), distances.shape[1])
        marks = {("a", i), ("b", j), ("classes", int(a.labels[i]), int(b.labels[j]))}
        if marks & used or np.array_equal(a.pixels[i], b.pixels[j]):
            continue
        used |= marks
        pairs.append(
            Pair(
                numbers=(i, j),
                images=(a.pixels[i], b.pixels[j]),
                features=(a.features[i], b.features[j]),
                distance=float(distances[i, j]),
            )
        )
        if len(pairs) == count:
            break
    return pairs


def draw_pairs(
    nearest: list[Pair],
    farthest: list[Pair],
    *,
    names: tuple[str, str],
    components: NDArray[np.int64],
    dpi: int = DPI,
) -> bytes:
    """Return `pairs_figure` of the same arguments as a PNG file of so many dots an inch."""
    figure = pairs_figure(nearest, farthest, names=names, components=components)
    return png_of(figure, dpi)


def pairs_figure(
    nearest: list[Pair],
    farthest: list[Pair],
    *,
    names: tuple[str, str],
    components: NDArray[np.int64],
) -> Figure:
    """Draw a row of nearest and a row of farthest pairs, with bars of their features.

    Args:
        nearest: pairs, nearest first.
        farthest: as many, farthest first.
        names: what the first (blue) and the second (green) image of each pair come from.
        components: which components of the features the bars show.
    """
    columns = max(len(nearest), len(farthest), 3)  # room for the titles
    figure = new_figure(1.5 * columns, 3.9)
    shown = [pair.features[k][components] for pair in nearest + farthest for k in (0, 1)]
    limit = 1.1 * max(float(np.abs(values).max()) for values in shown)
    title = f"Nearest in the representation: {names[0]} (blue, left) and {names[1]} (green, right)"
    for text, pairs, top in ((title, nearest, 1.0), ("Farthest apart", farthest, 0.5)):
        figure.text(0.5, top - 0.02, text, ha="center", va="top", fontsize=9, color=INK)
        grid = figure.add_gridspec(
            2,
            columns,
            left=0.02,
            right=0.98,
            top=top - 0.085,
            bottom=top - 0.45,
            wspace=0.14,
            hspace=0.08,
            height_ratios=(1.15, 1),
        )
        for column, pair in enumerate(pairs):
            _draw_images(figure.add_subplot(grid[0, column]), pair)
            _draw_bars(figure.add_subplot(grid[1, column]), pair, components, limit)
    return figure


def _draw_images(axes: Axes, pair: Pair) -> None:
    for side, colour in enumerate((BLUE, GREEN)):
        frame = {"edgecolor": colour, "linewidth": 1.8}
        show_image(axes, pair.images[side], 1.06 * side, 0, 1, frame)
    axes.set(xlim=(-0.02, 2.08), ylim=(1.02, -0.02), aspect="equal", anchor="S")
    axes.set_axis_off()


def _draw_bars(axes: Any, pair: Pair, components: NDArray[np.int64], limit: float) -> None:
    at = np.arange(len(components))
    width = 45 / len(components)  # points: half of a bar's place
    for values, colour, shift in zip(pair.features, (BLUE, GREEN), (-0.25, 0.25), strict=True):
        axes.vlines(at + shift, 0, values[components], color=colour, linewidth=width)
    low = -limit if min(float(f[components].min()) for f in pair.features) < 0 else 0.0
    axes.set(xlim=(-1, len(at)), ylim=(low, limit), xticks=[], yticks=[])
    axes.set_xlabel(f"distance {pair.distance:#.3g}", fontsize=7.5, color=INK, labelpad=2)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
