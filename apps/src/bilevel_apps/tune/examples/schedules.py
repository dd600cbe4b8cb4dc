"""Learning rate and momentum, adapted while a small network learns the digits.

One inner run: after every few steps of gradient descent with momentum, learning rate and momentum
move along the real-time hypergradient of the validation loss. What comes out is a schedule that
costs one run. It is compared with the same run at the constant numbers that it starts from, and
with the best pair of a grid, which costs as many runs as the grid has pairs.

Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
Frasconi, Pontil, 2017), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel_apps.drawing.style import BLUE, GREEN, INK, tidy_axes
from bilevel_apps.tune import Figures, HistoryRow, Tuning
from bilevel_core import HeavyBall, Interval, Positive, Problem, solve_inner

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

__all__ = ["schedules"]

CLASSES, PIXELS = 10, 64
GRID = ((0.01, 0.05, 0.2, 0.5), (0.5, 0.9, 0.98))  # learning rates and momenta
ERROR, LOSS = "test error %", "test loss"

Weights = dict[str, Tensor]
Numbers = dict[str, Tensor]


def schedules(
    seed: int = 0,
    rate: float = 0.05,
    momentum: float = 0.5,
    steps: int = 500,
    batch: int = 50,
    hidden: int = 32,
) -> Tuning:
    """Return the tuning of learning rate and momentum during one run.

    Args:
        seed: of the split, the initial weights and the batches.
        rate: where the learning rate starts.
        momentum: where the momentum starts.
        steps: of the run.
        batch: examples a step.
        hidden: units of the network.
    """
    data = _load(seed)
    dynamics = HeavyBall(step_size=_at("rate"), momentum=_at("momentum"))
    problem = _problem(data, seed, batch, hidden)
    return Tuning(
        title=(
            f"schedules: {steps} steps of a network with {hidden} hidden units on "
            f"{len(data.y)} digits; {len(data.y_valid)} validate, {len(data.y_test)} are held out"
        ),
        problem=problem,
        dynamics=dynamics,
        lam=_numbers(rate, momentum),
        steps=steps,
        optimizer=partial(torch.optim.Adam, lr=0.02),
        reparametrize={"rate": Positive(), "momentum": Interval(low=0.0, high=1.0)},
        online=True,
        every=5,
        report=lambda lam, w: _report(data, w),  # noqa: ARG005
        baseline=lambda: _grid(data, problem, dynamics, steps),
        draw=_draw,
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Data:
    """Pixels in [0, 1], (n, 64), and labels, (n,), of three parts."""

    x: Tensor
    y: Tensor
    x_valid: Tensor
    y_valid: Tensor
    x_test: Tensor
    y_test: Tensor


def _load(seed: int, train: int = 600, valid: int = 300) -> _Data:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    first, second, rest = np.split(order, [train, train + valid])
    x, y = torch.tensor(pixels / 16), torch.tensor(labels)
    return _Data(
        x=x[first],
        y=y[first],
        x_valid=x[second],
        y_valid=y[second],
        x_test=x[rest],
        y_test=y[rest],
    )


def _problem(data: _Data, seed: int, batch: int, hidden: int) -> Problem:
    start = _weights(seed, hidden)

    def batches(t: int) -> Tensor:
        chosen = np.random.default_rng([seed, int(t)]).integers(0, len(data.y), batch)
        return torch.from_numpy(chosen)

    def inner(w: Weights, lam: Numbers, chosen: Tensor) -> Tensor:
        del lam
        return cross_entropy(_scores(w, data.x[chosen]), data.y[chosen])

    def outer(w: Weights, lam: Numbers) -> Tensor:
        del lam
        return cross_entropy(_scores(w, data.x_valid), data.y_valid)

    return Problem(inner=inner, outer=outer, init=lambda lam: start, batches=batches)  # noqa: ARG005


def _weights(seed: int, hidden: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return drawn / math.sqrt(rows)

    zeros = partial(torch.zeros, dtype=torch.float64)
    return {
        "first": normal(PIXELS, hidden),
        "first bias": zeros(hidden),
        "second": normal(hidden, CLASSES),
        "second bias": zeros(CLASSES),
    }


def _scores(w: Weights, x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ w["first"] + w["first bias"])
    scores: Tensor = hidden @ w["second"] + w["second bias"]
    return scores


def _numbers(rate: float, momentum: float) -> Numbers:
    scalar = partial(torch.tensor, dtype=torch.float64)
    return {"rate": scalar(rate), "momentum": scalar(momentum)}


def _at(name: str) -> Callable[[Numbers, int], Tensor]:
    """Return the coefficient that is λ's entry of a name, at every step."""

    def coefficient(lam: Numbers, t: int) -> Tensor:
        del t
        return lam[name]

    return coefficient


def _report(data: _Data, w: Weights) -> Figures:
    scores = _scores(w, data.x_test)
    wrong = (scores.argmax(1) != data.y_test).double().mean()
    return {ERROR: 100 * float(wrong), LOSS: float(cross_entropy(scores, data.y_test))}


def _grid(data: _Data, problem: Problem, dynamics: HeavyBall, steps: int) -> Mapping[str, Figures]:
    """Return the constant pair that validates best."""
    runs = {}
    for rate, momentum in product(*GRID):
        numbers = _numbers(rate, momentum)
        w = solve_inner(problem, dynamics, numbers, steps=steps)
        runs[rate, momentum] = (float(problem.outer(w, numbers)), w)
    (rate, momentum), (_, w) = min(runs.items(), key=lambda run: run[1][0])
    return {f"constant {rate} and {momentum}, best of {len(runs)} runs": _report(data, w)}


def _draw(figure: SubFigure, lam: Numbers, records: Sequence[HistoryRow]) -> None:
    del lam
    panels = figure.subplots(2, 1, sharex=True)
    for axes, name, colour in zip(panels, ("rate", "momentum"), (BLUE, GREEN), strict=True):
        values = [record.lam[name] for record in records if record.lam is not None]
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.6)
        axes.set_ylabel("learning rate" if name == "rate" else name, color=INK)
        tidy_axes(axes)
    panels[-1].set_xlabel("update", color=INK)
