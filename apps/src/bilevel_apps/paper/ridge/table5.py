"""Table 5: the effect of T on ridge regression with a penalty a feature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel_apps.drawing.style import BLUE, GREEN, INK, VERMILLION, new_figure, tidy_axes
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.harness.summary import Summary, summary
from bilevel_apps.paper.published import published
from bilevel_apps.paper.ridge.data import Rows, curvature, draw_rows, drawn, mape, ridge
from bilevel_core import (
    Engine,
    Exact,
    GradientDescent,
    Interval,
    Problem,
    Reverse,
    Spectral,
    Unrolled,
    minimize,
)
from bilevel_core import hypergradient as computed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ITEM"]

TEXT = prose(__file__)

EXACT = "exact"
STEPS = {"10": 10, "50": 50, "100": 100, "250": 250}
PAPER = published("table5", "errors")
"""Validation and test MAPE, by T."""

PART = 30  # examples in each of the three parts
FEATURES, INFORMATIVE = 30, 5
NOISE = 0.002
LOWEST, LARGEST = 1e-4, 50.0
START = 1.0
RATE, FINEST, COARSEST = 0.5, 1e-3, 2.0
OUTER_STEPS = {False: 20, True: 200}
AGREE = 1e-8


def run(work: Work) -> Report:
    """Compute the table."""
    settings = {
        "examples": f"{PART} to train on, {PART} for validation, {PART} for the test",
        **drawn(FEATURES, INFORMATIVE, NOISE),
        "penalties": f"exp λ, one a feature, from {LOWEST} to {LARGEST:g}, {START:g} at the start",
        "inner": "gradient descent from 0, η = 1 / 2(‖X‖² + largest penalty)",
        "outer": f"Rprop, a step size a coordinate, {RATE} at first and from {FINEST} to "
        f"{COARSEST}, on the logit of λ's place between its bounds",
        "hyper-iterations": OUTER_STEPS[work.full],
        "kept": "the λ of the lowest validation error",
    }
    parts = work.by_seed(partial(_seed, outer_steps=OUTER_STEPS[work.full]), settings)
    count = OUTER_STEPS[work.full] * len(parts)
    return Report(
        rows=_rows(parts),
        details=_details(parts),
        claims=_claims(parts),
        picture=partial(_draw, parts),
        settings=settings | {"seeds": len(parts)},
        cost={
            "hypergradients": f"{count} a row, {OUTER_STEPS[work.full]} a seed",
            "inner steps": f"T = 10 step by step, {10 * count} of them; the others in closed form",
            "seconds": sum(part.seconds for part in parts),
        },
        differs=TEXT.differs,
        metrics={
            f"{name}/{figure}_{what}": getattr(_summary(parts, name, figure), what)
            for name in PAPER
            for figure in ("validation", "test")
            for what in ("mean", "median")
        },
    )


def _seed(seed: int, outer_steps: int) -> dict[str, Any]:
    """Tune λ on one data set for every T; returns figures by `T/name`, and λ by T."""
    train, held, test = draw_rows(
        seed, (PART, PART, PART), features=FEATURES, informative=INFORMATIVE, noise=NOISE
    )
    problem = ridge(train, held)
    descent = GradientDescent(step_size=1 / curvature(train.x, LARGEST))
    figures: dict[str, float] = {}
    found: dict[str, list[float]] = {}
    for name in PAPER:
        lam = _tuned(problem, descent, name, outer_steps)
        judged = _judged(problem, descent, name, lam, held, test, check=seed == 0)
        figures |= {f"{name}/{key}": value for key, value in judged}
        found[name] = lam.tolist()
    return figures | {"lam": found}


def _tuned(problem: Problem, descent: GradientDescent, name: str, outer_steps: int) -> Tensor:
    lam: Tensor = minimize(
        problem,
        descent,
        torch.full((FEATURES,), math.log(START), dtype=torch.float64),
        steps=STEPS.get(name, 0),
        outer_steps=outer_steps,
        optimizer=partial(torch.optim.Rprop, lr=RATE, step_sizes=(FINEST, COARSEST)),
        engine=_engine(name),
        reparametrize=Interval(low=math.log(LOWEST), high=math.log(LARGEST)),
    ).best_lam
    return lam


def _engine(name: str) -> Engine:
    """Return the cheapest engine: few steps are differentiated as they are."""
    if name == EXACT:
        return Exact()
    return Unrolled() if STEPS[name] < FEATURES else Spectral()


def _judged(
    problem: Problem,
    descent: GradientDescent,
    name: str,
    lam: Tensor,
    held: Rows,
    test: Rows,
    *,
    check: bool,
) -> list[tuple[str, float]]:
    """Return the figures of a tuned λ; `check` asks for the gap between the engines."""
    steps = STEPS.get(name, 0)
    found = computed(problem, descent, lam, steps=steps, engine=_engine(name))
    w = descent.params(found.state)
    gap = 0.0
    if check and name != EXACT:
        slow = computed(problem, descent, lam, steps=steps, engine=Reverse())
        gap = float((slow.grad - found.grad).norm() / slow.grad.norm())
    return [
        ("validation", float(mape(w, held))),
        ("test", float(mape(w, test))),
        ("relative_rmse", float(100 * (test.x @ w - test.y).norm() / test.y.norm())),
        ("engine_gap", gap),
    ]


def _values(parts: Sequence[Part], name: str, figure: str) -> list[float]:
    return [part.result[f"{name}/{figure}"] for part in parts]


def _summary(parts: Sequence[Part], name: str, figure: str) -> Summary:
    return summary(_values(parts, name, figure))


def _rows(parts: Sequence[Part]) -> list[Row]:
    rows: list[Row] = []
    for name, (paper_validation, paper_test) in PAPER.items():
        held, test = (_summary(parts, name, figure) for figure in ("validation", "test"))
        rows.append(
            {
                "T": name,
                "validation, paper": paper_validation,
                "validation, median": held.median,
                "validation, mean": held.mean,
                "validation ±": held.ci95,
                "test, paper": paper_test,
                "test, median": test.median,
                "test, mean": test.mean,
                "test ±": test.ci95,
                "test, lowest": test.lowest,
                "test, highest": test.highest,
                "test RMSE, %, median": _summary(parts, name, "relative_rmse").median,
            }
        )
    return rows


def _details(parts: Sequence[Part]) -> list[Row]:
    return [
        {
            "seed": seed,
            "T": name,
            **{
                figure: part.result[f"{name}/{figure}"]
                for figure in ("validation", "test", "relative_rmse", "engine_gap")
            },
            **{f"lambda_{i + 1}": value for i, value in enumerate(part.result["lam"][name])},
        }
        for seed, part in enumerate(parts)
        for name in PAPER
    ]


def _claims(parts: Sequence[Part]) -> list[Claim]:
    medians = {name: _summary(parts, name, "test").median for name in PAPER}
    ladder = [medians[name] for name in STEPS]
    first, last = (_values(parts, name, "test") for name in ("10", "250"))
    better = sum(b < a for a, b in zip(first, last, strict=True))
    gap = max(value for name in STEPS for value in _values(parts, name, "engine_gap"))
    return [
        Claim(
            text="the test error falls from T = 10 to 50, to 100, to 250",
            holds=all(b < a for a, b in pairwise(ladder)),
            found="medians " + ", ".join(f"{value:.3g}" for value in ladder),
        ),
        Claim(
            text="the test error at T = 250 is below that at T = 10 in every data set",
            holds=better == len(parts),
            found=f"in {better} of {len(parts)}",
        ),
        Claim(
            text="the test error approaches that of exact hyperparameter optimisation",
            holds=_distance(medians, "250") < 0.5 * _distance(medians, "50"),
            found=f"T = 250 has {medians['250']:.3g}, exact {medians[EXACT]:.3g}",
        ),
        Claim(
            text="the closed form is the step-by-step engine's hypergradient",
            holds=gap < AGREE,
            found=f"relative difference {gap:.1e} at most",
        ),
    ]


def _distance(medians: Mapping[str, float], name: str) -> float:
    return abs(math.log(medians[name] / medians[EXACT]))


def _draw(parts: Sequence[Part]) -> Figure:
    figure = new_figure(9.6, 4.2, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _draw_errors(left, parts)
    _draw_penalties(right, parts)
    for axes in (left, right):
        axes.set_xticks(range(len(PAPER)), list(PAPER))
        axes.set_xlabel("T, inner steps")
    tidy_axes(left, right)
    return figure


def _draw_errors(axes: Axes, parts: Sequence[Part]) -> None:
    """Draw the error of every seed, their median, and the paper's."""
    for column, (figure, label, colour, shape) in enumerate(
        (("validation", "validation", GREEN, "s"), ("test", "test", BLUE, "o"))
    ):
        for part in parts:
            values = [part.result[f"{name}/{figure}"] for name in PAPER]
            axes.plot(values, color=colour, alpha=0.18, linewidth=0.8)
        medians = [_summary(parts, name, figure).median for name in PAPER]
        axes.plot(medians, color=colour, marker=shape, linewidth=1.8, label=f"{label}, median")
        paper = [values[column] for values in PAPER.values()]
        style: dict[str, Any] = {
            "color": colour,
            "marker": shape,
            "markerfacecolor": "white",
            "linestyle": ":",
        }
        axes.plot(paper, **style, linewidth=1, label=f"{label}, paper")
    axes.set_yscale("log")
    axes.set_ylabel("mean absolute percentage error")
    axes.set_title(f"{len(parts)} data sets, thin lines", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _draw_penalties(axes: Axes, parts: Sequence[Part]) -> None:
    """Draw the tuned penalties of the features that inform and of those that do not."""
    shift = torch.linspace(-0.12, 0.12, max(2, len(parts))).tolist()
    for inform, colour, shape, side in ((True, BLUE, "o", -0.18), (False, VERMILLION, "x", 0.18)):
        for place, name in enumerate(PAPER):
            for part, aside in zip(parts, shift, strict=False):
                lam = part.result["lam"][name]
                chosen = lam[:INFORMATIVE] if inform else lam[INFORMATIVE:]
                heights = [math.exp(value) for value in chosen]
                x = [place + side + aside] * len(heights)
                axes.plot(x, heights, shape, color=colour, markersize=3, alpha=0.5)
        label = f"the {INFORMATIVE} that inform" if inform else "the others"
        axes.plot([], [], shape, color=colour, label=label)
    axes.axhline(START, color=INK, linewidth=0.8, linestyle=":", label="start")
    axes.set_yscale("log")
    axes.set_ylabel("tuned penalty of a feature")
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


ITEM = Item(
    name="table5",
    title="The effect of T on ridge regression with a penalty a feature",
    paper=TEXT.paper,
    seeds={Scale.QUICK: 10, Scale.FULL: 50},
    run=run,
)
