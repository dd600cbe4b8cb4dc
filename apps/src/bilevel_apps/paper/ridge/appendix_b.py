"""Appendix B: K-fold cross-validation as a bilevel problem, beside grid search on its folds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel_apps.drawing.style import BLUE, GREEN, INK, VERMILLION, new_figure, tidy_axes
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.harness.prose import prose
from bilevel_apps.paper.harness.summary import Summary, summary
from bilevel_apps.paper.ridge.data import Rows, curvature, draw_rows, drawn, join, ridge
from bilevel_core import (
    Interval,
    Nesterov,
    OuterStep,
    Problem,
    Unrolled,
    hypergradient,
    in_turn,
    joint_problem,
    minimize,
    sampled,
    solve_inner,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ITEM"]

TEXT = prose(__file__)

FOLDS, FOLD, TEST = 5, 20, 2000
FEATURES, INFORMATIVE, NOISE = 30, 5, 0.5
LOWEST, LARGEST, START = 1e-2, 300.0, 1.0
STEPS, MOMENTUM = 15, 0.7
GRID = {False: 25, True: 97}
PASSES = {False: 20, True: 200}
"""Hypergradients of every fold."""
RATES = {"together": 0.4, "in turn": 0.12, "sampled": 0.12}
MARKS = 5  # places on the way where the error of all folds is looked at
SAME, NEAR = 1e-3, 0.02  # of the cross-validation error, relative: together, and one fold at a time
PENALTIES = {"one penalty": 1, "one a feature": FEATURES}


def run(work: Work) -> Report:
    """Tune one penalty and one a feature, in three ways each, and search a grid."""
    passes, points = PASSES[work.full], GRID[work.full]
    settings = {
        "examples": f"{FOLDS} folds of {FOLD}, {TEST} for the test",
        **drawn(FEATURES, INFORMATIVE, NOISE),
        "penalties": f"exp λ from {LOWEST} to {LARGEST:g}, {START:g} at the start",
        "inner": f"T = {STEPS} steps of Nesterov, momentum {MOMENTUM}, from 0, "
        "η = 1 / 2(‖X‖² + largest penalty)",
        "outer": "Adam, on the logit of λ's place between its bounds, learning rate "
        + ", ".join(f"{rate} {name}" for name, rate in RATES.items()),
        "hypergradients of every fold": passes,
        "kept": "together: the λ of the lowest error; else the mean λ of the second half",
        "grid": f"{points} penalties, evenly in λ",
    }
    parts = work.by_seed(partial(_seed, passes=passes, points=points), settings)
    return Report(
        rows=_rows(parts),
        details=_details(parts),
        claims=_claims(parts),
        picture=partial(_draw, parts),
        settings=settings | {"seeds": len(parts)},
        cost={
            "trainings of one fold, a seed": f"{passes * FOLDS} differentiated for each way and "
            f"kind of penalty, {points * FOLDS} plain for the grid",
            "inner steps, a seed": f"{passes * FOLDS * STEPS} and {points * FOLDS * STEPS}",
            "grid for a penalty a feature": f"{points}^{FEATURES} · {FOLDS} trainings, "
            f"{float(points) ** FEATURES * FOLDS:.1e}",
            "seconds": sum(part.seconds for part in parts),
        },
        differs=TEXT.differs,
        metrics={
            f"{kind}/{way}_{figure}": summary(_of(parts, kind, way, figure)).mean
            for kind in PENALTIES
            for way in RATES
            for figure in ("cv", "test")
        },
    )


def _seed(seed: int, passes: int, points: int) -> dict[str, Any]:
    """Tune on one data set; returns by kind of penalty and way what was found and its cost."""
    *folds, test = draw_rows(
        seed, [FOLD] * FOLDS + [TEST], features=FEATURES, informative=INFORMATIVE, noise=NOISE
    )
    cv = _CrossValidation(folds, test)
    grid = torch.linspace(math.log(LOWEST), math.log(LARGEST), points, dtype=torch.float64)
    began = time.perf_counter()
    values = [cv.error(lam[None]) for lam in grid]
    best = min(range(points), key=values.__getitem__)
    seconds = time.perf_counter() - began
    found: dict[str, Any] = {
        "law": cv.law(),
        "grid": {
            "lam": grid.tolist(),
            "values": values,
            "best": float(grid[best]),
            "cv": values[best],
            "test": cv.test_error(grid[best][None]),
            "seconds": seconds,
        },
    }
    for kind, size in PENALTIES.items():
        found[kind] = {way: cv.tune(way, size, passes, seed) for way in RATES}
    return found


class _CrossValidation:
    """The folds of one data set as bilevel problems."""

    def __init__(self, folds: Sequence[Rows], test: Rows) -> None:
        rows = [
            join([fold for other, fold in enumerate(folds) if other != held])
            for held in range(FOLDS)
        ]
        everything = join(folds)
        self.problems = [ridge(train, held) for train, held in zip(rows, folds, strict=True)]
        self.joint = joint_problem(self.problems)
        self.whole = ridge(everything, test)
        # Fewer examples have no larger ‖X‖, so one step size is stable in every fold.
        self.inner = Nesterov(step_size=1 / curvature(everything.x, LARGEST), momentum=MOMENTUM)
        level = test.y - test.x @ torch.linalg.lstsq(test.x, test.y).solution
        self.noise = float((level**2).sum()) / (TEST - FEATURES)

    def error(self, lam: Tensor) -> float:
        """Return the cross-validation error of λ, of an example, relative to the noise."""
        w = solve_inner(self.joint, self.inner, lam, steps=STEPS)
        return float(self.joint.outer(w, lam)) / FOLD / self.noise

    def test_error(self, lam: Tensor) -> float:
        """Return the same on the test examples, of a model that is trained on all folds."""
        w = solve_inner(self.whole, self.inner, lam, steps=STEPS)
        return float(self.whole.outer(w, lam)) / TEST / self.noise

    def law(self) -> float:
        """Return how far the mean hypergradient of the folds is from that of all together."""
        lam = torch.full((FEATURES,), math.log(START), dtype=torch.float64)
        grads = [
            hypergradient(problem, self.inner, lam, steps=STEPS).grad
            for problem in (self.joint, *self.problems)
        ]
        whole, mean = grads[0], torch.stack(grads[1:]).mean(0)
        return float((whole - mean).norm() / whole.norm())

    def tune(self, way: str, size: int, passes: int, seed: int) -> dict[str, Any]:
        """Return the λ that one way comes to, its errors, the way there, and the time it took."""
        ways: dict[str, Problem | Callable[[int], Problem]] = {
            "together": self.joint,
            "in turn": in_turn(self.problems),
            "sampled": sampled(self.problems, 1, seed),
        }
        trail: list[Tensor] = []

        def follow(step: OuterStep) -> None:
            trail.append(step.lam)

        began = time.perf_counter()
        together = way == "together"
        outer_steps = passes if together else passes * FOLDS
        run = minimize(
            ways[way],
            self.inner,
            torch.full((size,), math.log(START), dtype=torch.float64),
            steps=STEPS,
            outer_steps=outer_steps,
            optimizer=partial(torch.optim.Adam, lr=RATES[way]),
            engine=Unrolled(),
            reparametrize=Interval(low=math.log(LOWEST), high=math.log(LARGEST)),
            callback=follow,
        )
        seconds = time.perf_counter() - began
        lam = run.best_lam if together else torch.stack(trail[outer_steps // 2 :]).mean(0)
        each = FOLDS if together else 1
        marks = [round(mark * (outer_steps - 1) / MARKS) for mark in range(MARKS)]
        path = [(mark * each, self.error(trail[mark])) for mark in marks]
        cv = self.error(lam)
        return {
            "lam": lam.tolist(),
            "cv": cv,
            "test": self.test_error(lam),
            "path": [*path, (outer_steps * each, cv)],
            "seconds": seconds,
        }


def _of(parts: Sequence[Part], kind: str, way: str, figure: str) -> list[float]:
    return [part.result[kind][way][figure] for part in parts]


def _grid(parts: Sequence[Part], figure: str) -> list[float]:
    return [part.result["grid"][figure] for part in parts]


def _rows(parts: Sequence[Part]) -> list[Row]:
    points = len(parts[0].result["grid"]["lam"])
    plain = {figure: _grid(parts, figure) for figure in ("cv", "test", "seconds")}
    best = [math.exp(lam) for lam in _grid(parts, "best")]
    rows = [_row("one penalty", "grid search", plain, points * FOLDS, summary(best).median)]
    for kind, size in PENALTIES.items():
        for way in RATES:
            figures = {name: _of(parts, kind, way, name) for name in plain}
            fits = parts[0].result[kind][way]["path"][-1][0]
            found = [math.exp(part.result[kind][way]["lam"][0]) for part in parts]
            rows.append(
                _row(kind, way, figures, fits, summary(found).median if size == 1 else None)
            )
    return rows


def _row(
    kind: str, way: str, figures: dict[str, list[float]], fits: int, penalty: float | None
) -> Row:
    cv, test = summary(figures["cv"]), summary(figures["test"])
    return {
        "penalties": kind,
        "way": way,
        "penalty, median": penalty,
        "cross-validation error": cv.mean,
        "±": cv.ci95,
        "test error": test.mean,
        "test ±": test.ci95,
        "trainings of a fold": fits,
        "inner steps": fits * STEPS,
        "seconds": summary(figures["seconds"]).mean,
    }


def _details(parts: Sequence[Part]) -> list[Row]:
    rows: list[Row] = []
    for seed, part in enumerate(parts):
        grid = part.result["grid"]
        head = {"seed": seed, "penalties": "one penalty", "way": "grid search"}
        for lam, value in zip(grid["lam"], grid["values"], strict=True):
            rows.append({**head, "lambda": lam, "trainings": FOLDS, "error": value})
        for kind in PENALTIES:
            for way in RATES:
                head = {"seed": seed, "penalties": kind, "way": way, "lambda": None}
                path = part.result[kind][way]["path"]
                rows += [{**head, "trainings": fits, "error": value} for fits, value in path]
    return rows


def _claims(parts: Sequence[Part]) -> list[Claim]:
    grid, lams = _grid(parts, "cv"), parts[0].result["grid"]["lam"]
    spacing = lams[1] - lams[0]
    excess = {way: _excess(parts, way, grid) for way in RATES}
    apart = max(
        abs(part.result["one penalty"]["together"]["lam"][0] - part.result["grid"]["best"])
        for part in parts
    )
    law = max(part.result["law"] for part in parts)
    many = {way: _of(parts, "one a feature", way, "cv") for way in RATES}
    gains = {way: _gain(parts, way) for way in RATES}
    return [
        Claim(
            text="one penalty, folds together: grid search's optimum",
            holds=excess["together"] <= SAME and apart <= spacing,
            found=f"the cross-validation error is {100 * excess['together']:+.3f} % of the grid's "
            f"at most, λ differs by {apart:.2g} at most, the grid's spacing is {spacing:.2g}",
        ),
        Claim(
            text=f"one penalty, one fold at a time: the same error within {NEAR:.0%}",
            holds=max(excess["in turn"], excess["sampled"]) <= NEAR,
            found=", ".join(f"{way} {100 * excess[way]:+.2f} %" for way in ("in turn", "sampled")),
        ),
        Claim(
            text="the mean of the folds' hypergradients is that of all folds together",
            holds=law < 1e-10,
            found=f"relative difference {law:.1e}",
        ),
        Claim(
            text="a penalty a feature, where no grid can go, has a lower cross-validation error in "
            "every data set",
            holds=all(a < b for values in many.values() for a, b in zip(values, grid, strict=True)),
            found=", ".join(f"{way} {summary(values).mean:.3g}" for way, values in many.items())
            + f"; grid {summary(grid).mean:.3g}",
        ),
        Claim(
            text="and a lower test error in the mean",
            holds=all(gain.mean > 0 for gain in gains.values()),
            found="lower by " + ", ".join(f"{gain} {way}" for way, gain in gains.items()),
        ),
    ]


def _excess(parts: Sequence[Part], way: str, grid: Sequence[float]) -> float:
    """Return by how much the error of one tuned penalty is above the grid's, relative, at most."""
    found = _of(parts, "one penalty", way, "cv")
    return max(a / b - 1 for a, b in zip(found, grid, strict=True))


def _gain(parts: Sequence[Part], way: str) -> Summary:
    """Return by how much many penalties' test error is below the grid's, paired."""
    found = _of(parts, "one a feature", way, "test")
    return summary([a - b for a, b in zip(_grid(parts, "test"), found, strict=True)])


LOOKS: dict[str, dict[str, Any]] = {
    "together": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "in turn": {"color": GREEN, "marker": "s", "linestyle": "--"},
    "sampled": {"color": VERMILLION, "marker": "^", "linestyle": ":"},
}


def _draw(parts: Sequence[Part]) -> Figure:
    figure = new_figure(12.6, 4.2, layout="constrained")
    axes = figure.subplots(1, 3)
    _draw_one(axes[0], parts[0].result)
    _draw_cost(axes[1], parts)
    _draw_many(axes[2], parts[0].result)
    tidy_axes(*axes)
    return figure


def _draw_one(axes: Axes, result: dict[str, Any]) -> None:
    """Draw the cross-validation error of one penalty, and where each way ended."""
    grid = result["grid"]
    penalties = [math.exp(lam) for lam in grid["lam"]]
    axes.plot(penalties, grid["values"], ".-", color=INK, linewidth=1, label="grid search")
    for size, (way, look) in zip((11, 8, 6), LOOKS.items(), strict=True):
        found = result["one penalty"][way]
        style: dict[str, Any] = {
            "color": look["color"],
            "marker": look["marker"],
            "linestyle": "none",
        }
        at = ([math.exp(found["lam"][0])], [found["cv"]])
        axes.plot(*at, **style, markersize=size, markerfacecolor="none", label=way)
    axes.set_xscale("log")
    axes.set_ylim(0.99 * grid["cv"], 1.2 * grid["cv"])
    axes.set_xlabel("the penalty")
    axes.set_ylabel("cross-validation error / noise variance")
    axes.set_title("one penalty, first data set", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _draw_cost(axes: Axes, parts: Sequence[Part]) -> None:
    """Draw the mean error of all folds against the trainings that it took."""
    for kind, width in zip(PENALTIES, (0.9, 1.9), strict=True):
        for way, look in LOOKS.items():
            paths = [part.result[kind][way]["path"] for part in parts]
            fits = [fits for fits, _ in paths[0]]
            means = [
                summary([value for _, value in places]).mean for places in zip(*paths, strict=True)
            ]
            label = way if kind == "one a feature" else None
            axes.plot(fits, means, **look, linewidth=width, markersize=2.5 * width, label=label)
    grid, points = summary(_grid(parts, "cv")).mean, len(parts[0].result["grid"]["lam"])
    axes.plot([points * FOLDS], [grid], "*", color=INK, markersize=11, label="grid search")
    axes.axhline(grid, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("trainings of one fold")
    axes.set_title(f"thin: one penalty; thick: one a feature\nmean of {len(parts)}", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def _draw_many(axes: Axes, result: dict[str, Any]) -> None:
    """Draw the penalties of all features."""
    axes.axvspan(0.5, INFORMATIVE + 0.5, color=INK, alpha=0.08, linewidth=0)
    for way, look in LOOKS.items():
        heights = [math.exp(lam) for lam in result["one a feature"][way]["lam"]]
        style: dict[str, Any] = {
            "color": look["color"],
            "marker": look["marker"],
            "linestyle": "none",
        }
        axes.plot(range(1, FEATURES + 1), heights, **style, markersize=5, alpha=0.75, label=way)
    best = math.exp(result["grid"]["best"])
    axes.axhline(best, color=INK, linewidth=0.8, linestyle=":", label="the best single one")
    axes.set_yscale("log")
    axes.set_xlabel(f"feature; the first {INFORMATIVE} inform")
    axes.set_ylabel("tuned penalty")
    axes.legend(
        title="one penalty a feature, first data set",
        title_fontsize=11,
        frameon=False,
        fontsize=9,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
    )


ITEM = Item(
    name="appendix-b",
    title="K-fold cross-validation as a bilevel problem, beside grid search",
    paper=TEXT.paper,
    seeds={Scale.QUICK: 3, Scale.FULL: 20},
    run=run,
)
