"""Figure 3: the outer objectives f_T and f while H is tuned."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from bilevel_apps.paper.effect_of_t.picture import STYLES, beside_curves, label
from bilevel_apps.paper.effect_of_t.problem import EXACT, STEPS
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
        differs=(_single_step(found), *DIFFERS),
        metrics={f"{name}/f_T": found.last(name, "f_T").mean for name in NAMES},
    )


def _rows(found: Study) -> list[Row]:
    rows: list[Row] = []
    for name in NAMES:
        last = found.last(name, "f_T")
        rows.append(
            {
                "T": name,
                "f_T at H = I": found.curve(name, "f_T")[0].mean,
                "f_T - f at H = I": _gap(found, name, 0).mean,
                "f_T after all hyper-iterations": last.mean,
                "±": last.ci95,
                "f at the same H": found.last(name, "f").mean,
                "f_T - f at the H of the exact problem": _gap(found, name, -1).mean,
                "gap ±": _gap(found, name, -1).ci95,
                "η × largest curvature, at most": max(map(max, found.paths(name, "reach"))),
            }
        )
    return rows


def _gap(found: Study, name: str, place: int) -> Summary:
    """Return f_T - f at an H where the optimisation of the exact problem was looked at."""
    return summary([path[place] for path in _gaps(found, name)])


def _gaps(found: Study, name: str) -> list[list[float]]:
    """Return f_T - f for every data set, at every look at the optimisation of the exact problem."""
    return [
        [look["others"].get(name, look["f"]) - look["f"] for look in result["looks"]]
        for result in found.results[EXACT]
    ]


def _details(found: Study) -> list[Row]:
    gaps = {name: _gaps(found, name) for name in NAMES}
    return [
        {
            "seed": seed,
            "T": name,
            "hyper-iteration": look["step"],
            "f_T": look["f_T"],
            "f at the same H": look["f"],
            "f_T - f at the H of the exact problem": gaps[name][seed][place],
            "eta x curvature": look["reach"],
        }
        for name in NAMES
        for seed, result in enumerate(found.results[name])
        for place, look in enumerate(result["looks"])
    ]


def _claims(found: Study) -> list[Claim]:
    ends = [found.last(name, "f_T").mean for name in NAMES[1:]]
    gaps = [abs(_gap(found, name, -1).mean) for name in STEPS]
    return [
        Claim(
            text="f_T approaches f as T grows: at every H that the exact problem comes by, the gap "
            "of a larger T is smaller",
            holds=all(_falling(_gaps(found, a), _gaps(found, b)) for a, b in pairwise(STEPS)),
            found="|f_T - f| at the last of them " + ", ".join(f"{gap:.3g}" for gap in gaps),
        ),
        Claim(
            text="after as many hyper-iterations f_T is lower for a larger T, from "
            "T = 4 on, and f lowest, in every data set",
            holds=all(
                b[-1] < a[-1]
                for low, high in pairwise(NAMES[1:])
                for a, b in zip(found.paths(low, "f_T"), found.paths(high, "f_T"), strict=True)
            ),
            found=f"after {found.looks[-1]}: " + ", ".join(f"{value:.5g}" for value in ends),
        ),
    ]


def _falling(a: list[list[float]], b: list[list[float]]) -> bool:
    """Say whether every gap of b is smaller than that of a."""
    pairs = (pair for x, y in zip(a, b, strict=True) for pair in zip(x, y, strict=True))
    return all(abs(second) < abs(first) for first, second in pairs)


def _single_step(found: Study) -> str:
    """Return what becomes of f_1 beside f_4."""
    pairs = zip(found.curve("1", "f_T"), found.curve("4", "f_T"), strict=True)
    below = [step for step, (a, b) in zip(found.looks, pairs, strict=True) if a.mean < b.mean]
    reach = max(map(max, found.paths("1", "reach")))
    return (
        "T = 1 is left out of the second claim: one step cannot diverge, however large H grows; η "
        f"times the largest curvature of L came to {reach:.2g} there, where 2 is the limit of many "
        "steps. "
        + (
            f"Its f_1, in the mean, is below f_4 from hyper-iteration {below[0]} on."
            if below
            else "Its f_1 stays above f_4, in the mean."
        )
    )


def _draw(found: Study) -> Figure:
    return beside_curves(_draw_gaps, found, "f_T", "$f_T$, and $f$ of the exact problem")


def _draw_gaps(axes: Axes, found: Study) -> None:
    """Draw how far f_T is from f at the same H, along the optimisation of the exact problem."""
    for name in STEPS:
        style = {key: STYLES[name][key] for key in ("color", "linestyle")}
        means = [_gap(found, name, place).mean for place in range(len(found.looks))]
        axes.plot(found.looks, [abs(mean) for mean in means], **style, label=label(name))
    axes.set_yscale("log")
    axes.set_xlabel("hyper-iterations of the exact problem")
    axes.set_ylabel("$|f_T - f|$ at its $H$")


ITEM = Item(
    name="figure3",
    title="The outer objectives f_T and f while H is tuned",
    paper=TEXT.paper,
    seeds=SEEDS,
    run=run,
    data=DATA,
    shows=True,
)
