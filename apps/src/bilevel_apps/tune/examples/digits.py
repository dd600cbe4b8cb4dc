"""Data hyper-cleaning: a weight for each training example, half of whose labels are wrong.

    L_λ(w) = (1/n) Σ_i λ_i ℓ(w; x_i, y_i),   E(w) = mean of ℓ(w; x, y) over trusted examples

ℓ is the cross-entropy of a softmax regression on the pixels of the digits. The labels of half of
the training examples are replaced by another class; nothing says which. The trusted examples, whose
labels are right, choose the weights.

Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
Frasconi, Pontil, 2017), section 5.1. It selects examples by a constraint on the sum of the weights;
here each weight lies in [0, 1] on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import cross_entropy

from bilevel_apps.drawing.style import BLUE, GREEN, INK, tidy_axes
from bilevel_apps.tune import Figures, HistoryRow, Tuning
from bilevel_core import HeavyBall, Interval, Problem, Unrolled

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

__all__ = ["digits"]

CLASSES = 10
GRID = np.logspace(-4, 1, 11)  # of C, for scikit-learn's search
ERROR = "test error %"
REFITTED = "refitted, test error %"


def digits(seed: int = 0, train: int = 1000, trusted: int = 400, wrong: float = 0.5) -> Tuning:
    """Return the tuning of the examples' weights.

    Args:
        seed: which examples are for training, trusted and test, and which labels are wrong.
        train: how many to train on.
        trusted: how many to choose the weights by; the rest of 1797 are for the test.
        wrong: the part of the training labels that are wrong.
    """
    data = _load(seed, train, trusted, wrong)
    x, y, x_trusted, y_trusted = map(
        torch.as_tensor, (data.x, data.y, data.x_trusted, data.y_trusted)
    )

    def inner(w: dict[str, Tensor], lam: Tensor) -> Tensor:
        return (lam * cross_entropy(_scores(w, x), y, reduction="none")).mean()

    def outer(w: dict[str, Tensor], lam: Tensor) -> Tensor:
        del lam
        return cross_entropy(_scores(w, x_trusted), y_trusted)

    return Tuning(
        title=(
            f"digits: {train} training examples, {wrong:.0%} with a wrong label, a weight for each "
            f"by {trusted} trusted ones; {len(data.y_test)} held out"
        ),
        problem=Problem(inner=inner, outer=outer, init=_zeros),
        dynamics=HeavyBall(step_size=1.0, momentum=0.9),
        lam=torch.full((train,), 0.5, dtype=torch.float64),
        steps=100,
        outer_steps=100,
        optimizer=partial(torch.optim.Adam, lr=0.1),
        engine=Unrolled(),
        reparametrize=Interval(low=0.0, high=1.0),
        report=partial(_report, data),
        baseline=partial(_scikit_learn, data),
        draw=partial(_draw, data.corrupted),
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Data:
    """Pixels in [0, 1], (n, 64), and labels, (n,); `corrupted` marks the wrong training labels."""

    x: NDArray[np.float64]
    y: NDArray[np.int64]
    corrupted: NDArray[np.bool_]
    x_trusted: NDArray[np.float64]
    y_trusted: NDArray[np.int64]
    x_test: NDArray[np.float64]
    y_test: NDArray[np.int64]


def _load(seed: int, train: int, trusted: int, wrong: float) -> _Data:
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    first, second, rest = np.split(order, [train, train + trusted])
    if min(len(first), len(second), len(rest)) == 0 or not 0 <= wrong <= 1:
        raise ValueError(
            f"train={train}, trusted={trusted} and wrong={wrong} leave nothing of {len(labels)} "
            "examples to train on, to trust or to test on: expected counts above 0 that sum to "
            "less, and a part of at most 1"
        )
    corrupted = np.zeros(train, dtype=bool)
    corrupted[rng.permutation(train)[: round(wrong * train)]] = True
    shift = np.where(corrupted, rng.integers(1, CLASSES, train), 0)
    return _Data(
        x=pixels[first] / 16,
        y=(labels[first] + shift) % CLASSES,
        corrupted=corrupted,
        x_trusted=pixels[second] / 16,
        y_trusted=labels[second],
        x_test=pixels[rest] / 16,
        y_test=labels[rest],
    )


def _zeros(lam: Tensor) -> dict[str, Tensor]:
    return {"weights": lam.new_zeros(64, CLASSES), "bias": lam.new_zeros(CLASSES)}


def _scores(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ w["weights"] + w["bias"]


def _report(data: _Data, lam: Tensor, w: dict[str, Tensor]) -> Figures:
    """Return the error of w_T, and that of a regression on weighted and trusted examples."""
    guessed = _scores(w, torch.as_tensor(data.x_test)).argmax(1).numpy()
    refitted = _refitted(data, lam.numpy(), 1.0)
    return {ERROR: 100 * float((guessed != data.y_test).mean()), REFITTED: _error(data, refitted)}


def _scikit_learn(data: _Data) -> Mapping[str, Figures]:
    """Return logistic regressions whose C does best on the trusted examples.

    Where those are trained on themselves, C stays at scikit-learn's default.
    """
    noisy = [_logistic(C=c).fit(data.x, data.y) for c in GRID]
    best = max(noisy, key=lambda model: model.score(data.x_trusted, data.y_trusted))
    trusted = _logistic(C=1.0).fit(data.x_trusted, data.y_trusted)
    both = _refitted(data, np.ones(len(data.y)), best.C)
    return {
        "LogisticRegression on the training examples": {ERROR: _error(data, best)},
        "LogisticRegression on training and trusted ones": {REFITTED: _error(data, both)},
        "LogisticRegression on the trusted ones": {REFITTED: _error(data, trusted)},
    }


def _refitted(data: _Data, weights: NDArray[np.float64], c: float) -> LogisticRegression:
    x, y = np.concatenate([data.x, data.x_trusted]), np.concatenate([data.y, data.y_trusted])
    return _logistic(C=c).fit(x, y, np.concatenate([weights, np.ones(len(data.y_trusted))]))


def _logistic(**options: Any) -> LogisticRegression:
    return LogisticRegression(max_iter=5000, **options)


def _error(data: _Data, model: LogisticRegression) -> float:
    return 100 * (1 - float(model.score(data.x_test, data.y_test)))


def _draw(
    corrupted: NDArray[np.bool_], figure: SubFigure, lam: Tensor, records: Sequence[HistoryRow]
) -> None:
    del records
    axes = figure.subplots()
    weights = lam.numpy()
    axes.hist(
        [weights[~corrupted], weights[corrupted]],
        bins=np.linspace(0, 1, 21).tolist(),
        color=[BLUE, GREEN],
        label=["right label", "wrong label"],
    )
    axes.set_xlabel("weight", color=INK)
    axes.set_ylabel("training examples", color=INK)
    axes.legend(frameon=False)
    tidy_axes(axes)
