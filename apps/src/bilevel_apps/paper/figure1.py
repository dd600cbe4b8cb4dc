"""Figure 1: a bilevel problem whose inner and outer variable are numbers, so that it can be drawn.

    g_{w,λ}(x) = w tanh(λ x),  L_λ(w) = 1/n Σ (g_{w,λ}(x_i) - y_i)²,  E the same on other examples

The outer variable is a representation of one number (section 2.2), and w a linear model on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel_apps.drawing.style import BLUE, CLASS_COLOURS, GREEN, VERMILLION, new_figure, tidy_axes
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Item, Report, Row, Scale
from bilevel_apps.paper.harness.prose import prose
from bilevel_core import Engine, Exact, GradientDescent, Problem, Unrolled, hypergradient, minimize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]

__all__ = ["ITEM"]

TEXT = prose(__file__)

EXAMPLES = {"training": 12, "validation": 40}
TRUE_W, TRUE_LAM, NOISE = 1.5, 1.0, 0.25
LOW, HIGH, START = 0.35, 3.0, 2.6
BLUE_LINES = 9
TICKS = (0.07, 0.1, 0.2, 0.3, 0.5, 0.8)
RISE = 0.25  # of a blue line above its dot, at its ends
POINTS = {False: 45, True: 221}
STEPS = (2, 5, 15)
STEP_SIZE, RATE, OUTER_STEPS = 0.4, 0.1, 80
LIGHT = CLASS_COLOURS[5]
CLOSE = 0.03  # of λ, about half the distance of two points of the coarser grid


def run(work: Work) -> Report:
    """Compute the figure."""
    points = POINTS[work.full]
    settings = {
        "model": "w tanh(λ x), w a number; no penalty",
        "data": f"y = {TRUE_W} tanh({TRUE_LAM} x) + {NOISE} ε, x uniform on [-3, 3]",
        "examples": ", ".join(f"{count} {name}" for name, count in EXAMPLES.items()),
        "f": f"the exact inner minimiser, at {points} λ from {LOW} to {HIGH}",
        "f_T": f"T = {', '.join(map(str, STEPS))}; gradient descent from 0, η = {STEP_SIZE}",
        "outer": f"Adam, learning rate {RATE}, {OUTER_STEPS} hyper-iterations from λ = {START}",
    }
    parts = work.by_seed(partial(_seed, points=points), settings)
    return Report(
        rows=_rows(parts),
        details=_details(parts),
        claims=_claims(parts),
        picture=partial(_draw, parts[0].result),
        settings=settings | {"seeds": f"{len(parts)}; the first is drawn"},
        cost={
            "hypergradients": len(parts) * (OUTER_STEPS + points) * (1 + len(STEPS)),
            "seconds": sum(part.seconds for part in parts),
        },
        differs=TEXT.differs,
        metrics={"distance": max(row["apart, at most"] for row in _rows(parts))},
    )


def _seed(seed: int, points: int) -> dict[str, Any]:
    """Return the curves f and f_T, and where the outer loop ends on each."""
    problem, train = _problem(seed)
    grid = torch.linspace(LOW, HIGH, points, dtype=torch.float64)
    curves: dict[str, Any] = {}
    for name, (engine, steps) in _engines().items():
        found = [_at(problem, lam, engine, steps) for lam in grid]
        run = minimize(
            problem,
            GradientDescent(step_size=STEP_SIZE),
            torch.tensor(START, dtype=torch.float64),
            steps=steps,
            outer_steps=OUTER_STEPS,
            optimizer=partial(torch.optim.Adam, lr=RATE),
            engine=engine,
        )
        w, value = _at(problem, run.best_lam, engine, steps)
        curves[name] = {
            "w": [w for w, _ in found],
            "f": [value for _, value in found],
            "found": {"lam": float(run.best_lam), "w": w, "f": value},
        }
    return {"grid": grid.tolist(), "curves": curves, "x": train[0].tolist(), "y": train[1].tolist()}


def _engines() -> dict[str, tuple[Engine, int]]:
    return {"f": (Exact(), 0), **{f"T = {steps}": (Unrolled(), steps) for steps in STEPS}}


def _problem(seed: int) -> tuple[Problem, tuple[Tensor, Tensor]]:
    """Return the problem and its training examples."""
    source = torch.Generator().manual_seed(seed)
    sets = []
    for count in EXAMPLES.values():
        x = 6 * torch.rand(count, dtype=torch.float64, generator=source) - 3
        disturbance = torch.randn(count, dtype=torch.float64, generator=source)
        sets.append((x, TRUE_W * torch.tanh(TRUE_LAM * x) + NOISE * disturbance))
    train, held = sets
    return (
        Problem(
            inner=lambda w, lam: _error(w, lam, *train),
            outer=lambda w, lam: _error(w, lam, *held),
            init=torch.zeros_like,
        ),
        train,
    )


def _error(w: Tensor, lam: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of (w tanh(λ x) - y)² over the examples, the last axis."""
    return ((w * torch.tanh(lam * x) - y) ** 2).mean(-1)


def _at(problem: Problem, lam: Tensor, engine: Engine, steps: int) -> tuple[float, float]:
    """Return w and the validation error at one λ."""
    descent = GradientDescent(step_size=STEP_SIZE)
    found = hypergradient(problem, descent, lam, steps=steps, engine=engine)
    return float(descent.params(found.state)), float(found.value)


def _rows(parts: Sequence[Part]) -> list[Row]:
    rows: list[Row] = []
    for name in parts[0].result["curves"]:
        picked = [(part.result["curves"][name], part.result) for part in parts]
        lowest = [result["grid"][_argmin(curve["f"])] for curve, result in picked]
        gaps = [_gap(curve["f"], result["curves"]["f"]["f"]) for curve, result in picked]
        ends = [curve["found"]["lam"] for curve, _ in picked]
        apart = [abs(a - b) for a, b in zip(ends, lowest, strict=True)]
        rows.append(
            {
                "curve": name,
                "λ found": ends[0],
                "w there": picked[0][0]["found"]["w"],
                "value there": picked[0][0]["found"]["f"],
                "λ of the curve's lowest point": lowest[0],
                "apart, at most": max(apart),
                "largest distance to f": max(gaps),
            }
        )
    return rows


def _details(parts: Sequence[Part]) -> list[Row]:
    return [
        {"seed": seed, "curve": name, "lambda": lam, "w": w, "value": value}
        for seed, part in enumerate(parts)
        for name, curve in part.result["curves"].items()
        for lam, w, value in zip(part.result["grid"], curve["w"], curve["f"], strict=True)
    ]


def _claims(parts: Sequence[Part]) -> list[Claim]:
    rows = _rows(parts)
    gaps = [row["largest distance to f"] for row in rows[1:]]
    reached = max(row["apart, at most"] for row in rows)
    limit = max(CLOSE, 0.6 * (HIGH - LOW) / (len(parts[0].result["grid"]) - 1))
    above = min(_lowest_line(part.result) for part in parts)
    ends = [[part.result["curves"][row["curve"]]["found"]["lam"] for row in rows] for part in parts]
    return [
        Claim(
            text="the blue dots are the lowest points of the blue lines",
            holds=above >= 0,
            found=f"no point of a line is below its dot; the nearest is {above:.1e} above",
        ),
        Claim(
            text="the red dot, where the outer loop ends, is the minimiser of the black curve",
            holds=reached <= limit,
            found=f"λ differs by {reached:.2g} at most, points of the curve are "
            f"{(HIGH - LOW) / (len(parts[0].result['grid']) - 1):.2g} apart",
        ),
        Claim(
            text="f_T converges to f uniformly (proof of Theorem 3.2)",
            holds=all(b < a for a, b in pairwise(gaps)),
            found="largest distances " + ", ".join(f"{gap:.2g}" for gap in gaps),
        ),
        Claim(
            text="and the minimisers of f_T to that of f",
            holds=all(abs(e[-1] - e[0]) < abs(e[1] - e[0]) for e in ends),
            found=f"λ = {', '.join(f'{lam:.3g}' for lam in ends[0][1:])}; f has {ends[0][0]:.3g}",
        ),
    ]


def _lowest_line(result: dict[str, Any]) -> float:
    """Return how far the points of the training error's lines are above the dots, the least."""
    x, y = (torch.tensor(result[name], dtype=torch.float64) for name in "xy")
    grid, dots = (torch.tensor(v, dtype=torch.float64) for v in (result["grid"], _f(result)["w"]))
    shifts = torch.tensor([-0.5, -0.1, -0.01, 0.01, 0.1, 0.5], dtype=torch.float64)
    lam = grid[:, None, None]
    line = _error((dots[:, None] + shifts)[..., None], lam, x, y)
    return float((line - _error(dots[:, None, None], lam, x, y)).min())


def _f(result: dict[str, Any]) -> dict[str, Any]:
    curve: dict[str, Any] = result["curves"]["f"]
    return curve


def _gap(values: Sequence[float], limit: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(values, limit, strict=True))


def _argmin(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


def _draw(result: dict[str, Any]) -> Figure:
    figure = new_figure(10.2, 4.6)
    _draw_space(figure.add_axes((0.0, 0.0, 0.5, 1.0), projection="3d"), result)
    _draw_curves(figure.add_axes((0.62, 0.14, 0.36, 0.76)), result)
    return figure


def _draw_space(axes: Axes3D, result: dict[str, Any]) -> None:
    """Draw training errors in blue, the outer objective in black, and its minimiser in red."""
    curve, grid = _f(result), result["grid"]
    x, y = (torch.tensor(result[name], dtype=torch.float64) for name in "xy")
    last = len(grid) - 1
    for line in range(BLUE_LINES):
        place = line * last // (BLUE_LINES - 1)
        lam, dot = grid[place], curve["w"][place]
        lam_there = torch.tensor(lam, dtype=torch.float64)
        half = (RISE / float((torch.tanh(lam_there * x) ** 2).mean())) ** 0.5
        w = torch.linspace(dot - half, dot + half, 81, dtype=torch.float64)
        heights = _error(w[:, None], lam_there, x, y)
        low = float(_error(torch.tensor(dot, dtype=torch.float64), lam_there, x, y))
        axes.plot([lam] * len(w), w.tolist(), heights.tolist(), color=BLUE, linewidth=1.3)
        label = "inner minimiser" if line == 0 else None
        axes.plot([lam], [dot], [low], "o", color=BLUE, markersize=5, label=label)
    axes.plot([], [], [], color=BLUE, label="training error, by w")
    axes.plot(grid, curve["w"], curve["f"], color="black", linewidth=2.2, label="f(λ)")
    best = curve["found"]
    style: dict[str, Any] = {
        "color": VERMILLION,
        "markersize": 9,
        "zorder": 10,
        "label": "its minimiser, found",
    }
    axes.plot([best["lam"]], [best["w"]], [best["f"]], "o", **style)
    axes.set_xlabel("λ")
    axes.set_ylabel("w")
    axes.set_zlabel("error")
    axes.view_init(elev=26, azim=-58)
    axes.set_box_aspect((1.5, 1.2, 0.8), zoom=0.95)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _draw_curves(axes: Axes, result: dict[str, Any]) -> None:
    """Draw f_T beside f, with the minimisers that the outer loop found."""
    styles = (("black", "-", 2.2), (GREEN, ":", 1.8), (BLUE, "-.", 1.6), (LIGHT, "--", 1.6))
    for (name, curve), (colour, dashes, width) in zip(
        result["curves"].items(), styles, strict=True
    ):
        axes.plot(
            result["grid"], curve["f"], dashes, color=colour, linewidth=width, label=_label(name)
        )
        found = curve["found"]
        red: dict[str, Any] = {
            "color": VERMILLION,
            "markersize": 8 if name == "f" else 5,
            "zorder": 5,
        }
        axes.plot([found["lam"]], [found["f"]], "o", **red)
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("λ")
    axes.set_ylabel("validation error")
    axes.set_title("after T inner steps, and in the limit", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    tidy_axes(axes)


def _label(name: str) -> str:
    return "f(λ)" if name == "f" else f"f_T(λ), {name}"


ITEM = Item(
    name="figure1",
    title="The bilevel problem: training errors, inner minimisers, outer objective",
    paper=TEXT.paper,
    seeds={Scale.QUICK: 3, Scale.FULL: 10},
    run=run,
)
