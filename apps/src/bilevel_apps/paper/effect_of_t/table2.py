"""Table 2: the work of a hypergradient against T, step by step and in closed form."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from bilevel_apps.drawing.style import BLUE, INK, VERMILLION, new_figure, tidy_axes
from bilevel_apps.paper.effect_of_t.problem import EXACT, STEPS
from bilevel_apps.paper.effect_of_t.study import DATA, DIFFERS, NAMES, SEEDS, Study, study
from bilevel_apps.paper.harness.cache import Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.published import published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ITEM"]

TEXT = prose(__file__)

PAPER = published("table2", "seconds")
"""Seconds on a Tesla M40, by T."""

LINEAR = 0.01  # by how much the work of one more step may vary, relative
SAME = 1e-8


def run(work: Work) -> Report:
    """Compute the table."""
    found = study(work)
    return Report(
        rows=_rows(found),
        details=_details(found),
        claims=_claims(found),
        picture=partial(_draw, found),
        settings=found.settings,
        cost=found.cost(),
        differs=(*TEXT.differs, *DIFFERS),
        metrics={
            f"{name}/seconds": seconds
            for name in STEPS
            if (seconds := found.work(name)["seconds"]) is not None
        },
    )


def _rows(found: Study) -> list[Row]:
    first = found.work("1")
    rows: list[Row] = []
    fast = {name: _seconds(found, name) for name in NAMES}
    for name in NAMES:
        counted = found.work(name)
        slow = counted.get("seconds")
        rows.append(
            {
                "T": name,
                "seconds, paper": PAPER[name],
                "to T = 1, paper": PAPER[name] / PAPER["1"],
                "to T = 1, step by step": slow and slow / first["seconds"],
                "to T = 1, closed form": fast[name] / fast["1"],
                "inner gradients, step by step": counted.get("steps"),
                "inner gradients, closed form": int(counted["closed_steps"]),
                "Gflop, step by step": counted.get("gflop"),
                "Gflop, closed form": counted["closed_gflop"],
                "processor seconds, step by step": slow,
                "processor seconds, closed form": fast[name],
            }
        )
    return rows


def _seconds(found: Study, name: str) -> float:
    seconds: float = found.results[name][0]["seconds"]
    return seconds


def _details(found: Study) -> list[Row]:
    return [
        {
            "seed": seed,
            "T": name,
            "eta": result["eta"],
            "processor seconds, closed form": result["seconds"],
            "relative difference at the end": result.get("work", {}).get("gap"),
            "relative difference on the way": result.get("work", {}).get("path_gap"),
        }
        for name in NAMES
        for seed, result in enumerate(found.results[name])
    ]


def _claims(found: Study) -> list[Claim]:
    work = {name: found.work(name) for name in STEPS}
    grads = {work[name]["steps"] / steps for name, steps in STEPS.items()}
    slopes = [
        (work[b]["gflop"] - work[a]["gflop"]) / (STEPS[b] - STEPS[a]) for a, b in pairwise(STEPS)
    ]
    products = [work[name]["closed_gflop"] for name in STEPS]
    taken = sum(work[name]["closed_steps"] for name in STEPS)
    gaps = [work[name][which] for name in STEPS for which in ("gap", "path_gap")]
    exact = found.work(EXACT)["gap"]
    return [
        Claim(
            text="the work of the step-by-step engine is linear in T",
            holds=len(grads) == 1 and max(slopes) <= (1 + LINEAR) * min(slopes),
            found=f"{', '.join(f'{each:g}' for each in sorted(grads))} inner gradients a step, and "
            f"from {min(slopes):.4g} to {max(slopes):.4g} Gflop for one more step",
        ),
        Claim(
            text="the work of the closed form does not grow with T",
            holds=taken == 0 and max(products) <= (1 + LINEAR) * min(products),
            found=f"{taken:g} inner gradients, and from {min(products):.4g} to "
            f"{max(products):.4g} Gflop",
        ),
        Claim(
            text="both give the same hypergradient, on the way and at the end",
            holds=max(gaps) < SAME,
            found=f"relative difference {max(gaps):.1e} at most",
        ),
        Claim(
            text="that of the exact problem is the implicit one",
            holds=exact < SAME,
            found=f"relative difference {exact:.1e}",
        ),
    ]


def _draw(found: Study) -> Figure:
    figure = new_figure(9.6, 4.0, layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = list(STEPS.values())
    work = {name: found.work(name) for name in STEPS}
    slow, fast = {"color": VERMILLION, "marker": "o"}, {"color": BLUE, "marker": "s"}
    left.plot(steps, [work[name]["gflop"] for name in STEPS], **slow, label="step by step")
    left.plot(steps, [work[name]["closed_gflop"] for name in STEPS], **fast, label="closed form")
    left.set_ylabel("$10^9$ operations in matrix products,\na hypergradient")
    first = work["1"]["seconds"]
    paper = [PAPER[name] / PAPER["1"] for name in STEPS]
    right.plot(steps, paper, color=INK, linestyle=":", marker="x", label="paper")
    right.plot(steps, [work[name]["seconds"] / first for name in STEPS], **slow)
    right.plot(steps, [_seconds(found, name) / _seconds(found, "1") for name in STEPS], **fast)
    right.set_ylabel("time of a hypergradient, relative to T = 1")
    for axes in (left, right):
        axes.set_xscale("log", base=4)
        axes.set_yscale("log")
        axes.set_xticks(steps, list(STEPS))
        axes.set_xticks([], minor=True)
        axes.set_xlabel("T, inner steps")
    tidy_axes(left, right)
    figure.legend(frameon=False, fontsize=9, ncols=3, loc="outside upper center")
    return figure


ITEM = Item(
    name="table2",
    title="The work of a hypergradient against T",
    paper=TEXT.paper,
    seeds=SEEDS,
    run=run,
    data=DATA,
    shows=True,
)
