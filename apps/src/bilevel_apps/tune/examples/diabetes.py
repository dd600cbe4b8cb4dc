"""Ridge regression with a penalty for each feature, on the diabetes data.

    L_λ(w) = (1/2n) ‖X w - y‖² + ½ Σ_j λ_g(j) w_j²

The 10 features (age, sex, body mass, …), their squares and products make 65 columns. Each of the 10
features has a penalty of its own, the squares share one and the products share one: 12 penalties
for some 300 examples. The outer objective is the mean squared error of 5-fold cross-validation, so
that no example is lost to validation, and the weights are then fitted to all of them, as RidgeCV
does. A penalty for every column would fit the folds instead: 300 examples cannot choose 65.

Source of the data: Least Angle Regression (Efron, Hastie, Johnstone, Tibshirani, 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes  # type: ignore[import-untyped]
from sklearn.linear_model import RidgeCV  # type: ignore[import-untyped]
from sklearn.model_selection import KFold  # type: ignore[import-untyped]
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import PolynomialFeatures, StandardScaler  # type: ignore[import-untyped]
from torch import Tensor

from bilevel_apps.drawing.style import BLUE, GREEN, INK, tidy_axes
from bilevel_apps.tune import Figures, HistoryRow, Tuning
from bilevel_core import Exact, Nesterov, Positive, Problem

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

__all__ = ["diabetes"]

FOLDS = 5
START = 0.1
GRID = np.logspace(-3, 2, 26)  # of penalties per example, for scikit-learn's search
FIGURE = "test mean squared error"


def diabetes(seed: int = 0, test: int = 142) -> Tuning:
    """Return the tuning of 12 penalties.

    Args:
        seed: which examples are held out.
        test: how many, of 442.
    """
    data = _load(seed, test)
    penalties = torch.full((len(data.names) + 2,), START, dtype=torch.float64)
    largest = float(np.linalg.eigvalsh(data.x.T @ data.x / len(data.x))[-1])
    return Tuning(
        title=(
            f"diabetes: {len(penalties)} ridge penalties, {FOLDS}-fold cross-validation on "
            f"{len(data.x)} examples, {test} held out"
        ),
        problem=_cross_validation(data),
        # Exact needs no inner run; the others take this one.
        dynamics=Nesterov(step_size=0.5 / largest, momentum=0.97),
        lam=penalties,
        steps=1000,
        outer_steps=60,
        optimizer=partial(torch.optim.Adam, lr=0.2),
        engine=Exact(),
        reparametrize=Positive(),
        report=lambda lam, w: {FIGURE: _test_error(data, lam)},  # noqa: ARG005
        baseline=lambda: _ridge_cv(data),
        draw=partial(_draw, data.names),
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Data:
    """Rows to tune on and rows to test on, standardised by the former.

    Attributes:
        x: (n, columns) and y: (n,), to tune on.
        x_test: (m, columns) and y_test: (m,).
        scale: of the target, to give errors in its units.
        groups: (columns,), which penalty each column has.
        names: of the features.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    x_test: NDArray[np.float64]
    y_test: NDArray[np.float64]
    scale: float
    groups: NDArray[np.int64]
    names: list[str]


def _load(seed: int, test: int) -> _Data:
    loaded = load_diabetes(scaled=False)
    order = np.random.default_rng(seed).permutation(len(loaded.target))
    held, rest = order[:test], order[test:]
    powers = PolynomialFeatures(2, include_bias=False)
    columns = make_pipeline(StandardScaler(), powers, StandardScaler())
    y = loaded.target[rest]
    x = columns.fit_transform(loaded.data[rest])
    degree, highest = powers.powers_.sum(1), powers.powers_.max(1)
    single, count = powers.powers_.argmax(1), len(loaded.feature_names)
    return _Data(
        x=x,
        y=(y - y.mean()) / y.std(),
        x_test=columns.transform(loaded.data[held]),
        y_test=(loaded.target[held] - y.mean()) / y.std(),
        scale=float(y.std()),
        groups=np.where(degree == 1, single, np.where(highest == 2, count, count + 1)),
        names=list(loaded.feature_names),
    )


def _cross_validation(data: _Data) -> Problem:
    """Return the problem whose w holds the weights of all folds, (folds, columns)."""
    parts = [_centred(data, *rows) for rows in KFold(FOLDS).split(data.x)]
    gram = torch.stack([x.T @ x / len(x) for x, _, _, _ in parts])
    target = torch.stack([x.T @ y / len(x) for x, y, _, _ in parts])
    groups = torch.tensor(data.groups)

    def inner(w: Tensor, lam: Tensor) -> Tensor:
        # The squared error but for a constant, by Gram matrices: no step sees the examples.
        curved = torch.einsum("kc,kcd,kd->", w, gram, w) / 2 - (target * w).sum()
        return curved + (lam[groups] * w**2).sum() / 2

    def outer(w: Tensor, lam: Tensor) -> Tensor:
        del lam
        errors = [((x @ v - y) ** 2).mean() for v, (_, _, x, y) in zip(w, parts, strict=True)]
        return torch.stack(errors).mean()

    return Problem(inner=inner, outer=outer, init=lambda lam: lam.new_zeros(target.shape))


def _centred(
    data: _Data, train: NDArray[np.int64], held: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return one fold's rows to train on and held out, centred: no intercept is penalised."""
    middle, level = data.x[train].mean(0), data.y[train].mean()
    x, x_held = (torch.tensor(data.x[rows] - middle) for rows in (train, held))
    y, y_held = (torch.tensor(data.y[rows] - level) for rows in (train, held))
    return x, y, x_held, y_held


def _test_error(data: _Data, lam: Tensor) -> float:
    """Return the test error of the ridge regression on all rows but the test's."""
    middle, level = data.x.mean(0), data.y.mean()
    x, n = data.x - middle, len(data.x)
    penalty = np.diag(lam.numpy()[data.groups])
    w = np.linalg.solve(x.T @ x / n + penalty, x.T @ (data.y - level) / n)
    return _error(data, (data.x_test - middle) @ w + level)


def _ridge_cv(data: _Data) -> Mapping[str, Figures]:
    """Return what scikit-learn's search for one penalty comes to, on the same folds."""
    rows = {}
    linear = data.groups < len(data.names)
    for name, columns in (("the same columns", linear | True), ("the features alone", linear)):
        found = RidgeCV(GRID * len(data.x), cv=KFold(FOLDS)).fit(data.x[:, columns], data.y)
        predicted = found.predict(data.x_test[:, columns])
        rows[f"RidgeCV on {name}"] = {FIGURE: _error(data, predicted)}
    return rows


def _error(data: _Data, predicted: NDArray[np.float64]) -> float:
    return float(((predicted - data.y_test) ** 2).mean() * data.scale**2)


def _draw(names: list[str], figure: SubFigure, lam: Tensor, records: Sequence[HistoryRow]) -> None:
    del records
    labels = [*names, "squares", "products"]
    axes = figure.subplots()
    # Dots and not bars: a logarithmic axis has no zero for a bar to start from.
    axes.axvline(START, color=GREEN, linewidth=1.6, label="start")
    axes.plot(lam.numpy(), labels, "o", color=BLUE, label="tuned")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("penalty", color=INK)
    tidy_axes(axes)
