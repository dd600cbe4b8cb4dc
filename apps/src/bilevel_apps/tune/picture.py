"""The picture of a tuning: the outer objective by hyper-iteration, and what was tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bilevel_apps.drawing.style import BLUE, INK, tidy_axes
from bilevel_apps.tune.tuning import HistoryRow, Tuning
from bilevel_core.types import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_history"]

LOG_RANGE = 10.0  # positive values that differ by more are drawn on a logarithmic axis


def draw_history(
    path: Path,
    records: Sequence[HistoryRow],
    tuning: Tuning,
    lam: Tree,
    *,
    warn: Callable[[str], None],
) -> None:
    """Write a PNG file: the history on the left and, where the tuning draws it, λ on the right.

    Args:
        path: the file.
        records: the hyper-iterations.
        tuning: what was tuned; its `draw` may fail, which costs a warning.
        lam: the tuned λ.
        warn: told in one line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if tuning.draw is None else 2
    figure = Figure(figsize=(5.2 * columns, 4.2), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(1, columns, squeeze=False)[0]
    _draw_values(parts[0].subplots(), records, online=tuning.online)
    if tuning.draw is not None:
        try:
            tuning.draw(parts[1], lam, records)
        except Exception as error:  # a user's drawing can fail in any way, and is not worth the run
            warn(f"the picture lacks its right half ({type(error).__name__}: {error})")
            parts[1].clear()
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_values(axes: Axes, records: Sequence[HistoryRow], *, online: bool) -> None:
    values = [record.value for record in records]
    axes.plot([r.index + 1 for r in records], values, color=BLUE, linewidth=1.6)
    if values and min(values) > 0 and max(values) > LOG_RANGE * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("update" if online else "hyper-iteration", color=INK)
    axes.set_ylabel("outer objective", color=INK)
    tidy_axes(axes)
