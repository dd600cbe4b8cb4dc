"""Figure 4: the accuracy on test examples while H is tuned."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from bilevel_apps.drawing.style import INK
from bilevel_apps.paper.effect_of_t.picture import STYLES, beside_curves, label
from bilevel_apps.paper.effect_of_t.problem import EXACT
from bilevel_apps.paper.effect_of_t.study import DATA, DIFFERS, NAMES, SEEDS, Study, study
from bilevel_apps.paper.harness.cache import Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.harness.summary import Summary, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ITEM"]

TEXT = prose(__file__)

NEAR = 0.98
"""What is called almost 100 %."""
SMALL = "4"
"""The T that stands for a small one; named beforehand, and not by the test accuracy."""


def run(work: Work) -> Report:
    """Compute the figure."""
    found = study(work)
    return Report(
        rows=_rows(found),
        details=_details(found),
        claims=_claims(found),
        picture=partial(_draw, found),
        settings=found.settings,
        cost=found.cost(),
        differs=(_falls(found), *DIFFERS),
        metrics={f"{name}/test": _best(found, name).mean / 100 for name in NAMES},
    )


def _peaks(found: Study, name: str) -> list[tuple[float, int]]:
    """Return the highest test accuracy of every data set, and the first look that saw it."""
    paths = found.paths(name, "test")
    return [(max(path), found.looks[path.index(max(path))]) for path in paths]


def _best(found: Study, name: str) -> Summary:
    """Return the highest test accuracy, %."""
    return summary([100 * accuracy for accuracy, _ in _peaks(found, name)])


def _last(found: Study, name: str) -> Summary:
    """Return the test accuracy at the end, %."""
    return summary([100 * path[-1] for path in found.paths(name, "test")])


def _when(found: Study, name: str) -> Summary:
    return summary([float(step) for _, step in _peaks(found, name)])


def _rows(found: Study) -> list[Row]:
    rows: list[Row] = []
    for name in NAMES:
        best, when, last = _best(found, name), _when(found, name), _last(found, name)
        rows.append(
            {
                "T": name,
                "test at H = I, %": 100 * found.curve(name, "test")[0].mean,
                "highest test, %": best.mean,
                "±": best.ci95,
                "after, median": when.median,
                "after, lowest": when.lowest,
                "after, highest": when.highest,
                "test at the end, %": last.mean,
                "end ±": last.ci95,
                "validation at the end, %": 100 * found.last(name, "held").mean,
                "training at the end, %": 100 * found.last(name, "train").mean,
            }
        )
    return rows


def _details(found: Study) -> list[Row]:
    return [
        {
            "seed": seed,
            "T": name,
            "hyper-iteration": look["step"],
            **{figure: look[figure] for figure in ("train", "held", "test")},
        }
        for name in NAMES
        for seed, result in enumerate(found.results[name])
        for look in result["looks"]
    ]


def _claims(found: Study) -> list[Claim]:
    small, exact = (_last(found, name).mean for name in (SMALL, EXACT))
    pairs = zip(found.paths(SMALL, "test"), found.paths(EXACT, "test"), strict=True)
    lead = 100 * min(a[-1] - b[-1] for a, b in pairs)
    when = [_when(found, name).median for name in NAMES]
    settled = [found.last(n, figure).mean for n in NAMES[1:] for figure in ("train", "held")]
    return [
        Claim(
            text=f"a small T acts as a regulariser: tuned to the end, T = {SMALL} has a higher "
            "test accuracy than the exact problem, in every data set",
            holds=lead > 0,
            found=f"{small:.2f} and {exact:.2f} %, and {lead:.2f} points more at least",
        ),
        Claim(
            text="the maximum of the test accuracy comes after fewer hyper-iterations, or as many, "
            "as T grows",
            holds=all(b <= a for a, b in pairwise(when)),
            found="medians " + ", ".join(f"{step:g}" for step in when),
        ),
        Claim(
            text="training and validation accuracies are almost 100 % from T = 4 on",
            holds=min(settled) >= NEAR,
            found=f"{100 * min(settled):.1f} % at least",
        ),
    ]


def _falls(found: Study) -> str:
    """Return how far apart the maxima are, and what is lost after them."""
    best = {name: _best(found, name).mean for name in NAMES}
    low, high = min(NAMES, key=best.__getitem__), max(NAMES, key=best.__getitem__)
    falls = ", ".join(f"{best[name] - _last(found, name).mean:.1f}" for name in NAMES)
    return (
        f"The maxima are near each other, from {best[low]:.1f} % ({label(low)}) to "
        f"{best[high]:.1f} % ({label(high)}). From there to the end the accuracy falls by "
        f"{falls} points, in the order of the table. A maximum is that of the test accuracy, as in "
        "the paper's text: nobody could stop there without looking at it."
    )


def _draw(found: Study) -> Figure:
    return beside_curves(_draw_peaks, found, "test", "accuracy on test examples, %", factor=100)


def _draw_peaks(axes: Axes, found: Study) -> None:
    """Draw where the maximum of each data set lies, and their median."""
    for place, name in enumerate(NAMES):
        marks = [step for _, step in _peaks(found, name)]
        style = {key: STYLES[name][key] for key in ("color", "marker")}
        axes.plot([place] * len(marks), marks, linestyle="none", alpha=0.6, **style)
    medians = [_when(found, name).median for name in NAMES]
    axes.plot(medians, color=INK, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xticks(range(len(NAMES)), list(NAMES))
    axes.set_xlabel("T, inner steps")
    axes.set_ylabel("hyper-iterations to the maximum")


ITEM = Item(
    name="figure4",
    title="The accuracy on test examples while H is tuned",
    paper=TEXT.paper,
    seeds=SEEDS,
    run=run,
    data=DATA,
    shows=True,
)
