"""What the items compute: the data, the closed forms behind them, and the claims at quick."""

import json
import math
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
import torch

from bilevel_apps.paper import Scale, figure1, load_item
from bilevel_apps.paper.harness.cache import Part
from bilevel_apps.paper.harness.make import ItemRequest, run_item
from bilevel_apps.paper.ridge import appendix_b, table5
from bilevel_apps.paper.ridge.data import Rows, curvature, draw_rows, join, mape, ridge
from bilevel_core import Exact, GradientDescent, hypergradient


def test_the_data_are_as_declared():
    first, second = draw_rows(0, (4000, 1000), features=6, informative=2, noise=0.5)
    assert first.x.shape == (4000, 6)
    assert second.y.shape == (1000,)
    w = torch.linalg.lstsq(first.x, first.y).solution
    assert (w[:2] > 0.1).all()
    assert (w[2:].abs() < 0.03).all()
    left = (first.y - first.x @ w).std()
    assert float(left / w.norm()) == pytest.approx(0.5, rel=0.05)
    again = draw_rows(0, (4000, 1000), features=6, informative=2, noise=0.5)[0]
    assert torch.equal(again.x, first.x)
    other = draw_rows(1, (4000, 1000), features=6, informative=2, noise=0.5)[0]
    assert not torch.equal(other.x, first.x)
    assert torch.equal(join([first, second]).y, torch.cat([first.y, second.y]))


def test_mape():
    rows = Rows(torch.eye(2, dtype=torch.float64), torch.tensor([2.0, -4.0], dtype=torch.float64))
    assert float(mape(torch.tensor([1.0, -5.0], dtype=torch.float64), rows)) == pytest.approx(37.5)


def test_ridge_is_that_of_the_appendix():
    """With A = XᵀX + diag exp λ, w = A⁻¹ Xᵀy is the minimiser and ∇f = -exp λ ∘ w ∘ A⁻¹ ∇E."""
    train, held = draw_rows(0, (12, 9), features=4, informative=2, noise=0.3)
    lam = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    found = hypergradient(
        ridge(train, held), GradientDescent(step_size=0.01), lam, steps=0, engine=Exact()
    )
    matrix = train.x.T @ train.x + torch.diag(lam.exp())
    w = torch.linalg.solve(matrix, train.x.T @ train.y)
    slope = 2 * held.x.T @ (held.x @ w - held.y)
    grad = -lam.exp() * w * torch.linalg.solve(matrix, slope)
    torch.testing.assert_close(found.state, w, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.grad, grad, rtol=1e-9, atol=0)
    one = hypergradient(
        ridge(train, held), GradientDescent(step_size=0.01), lam[:1], steps=0, engine=Exact()
    )
    assert one.grad.shape == (1,)


def test_the_step_size_is_the_largest_that_descends_everywhere():
    (rows,) = draw_rows(0, (8,), features=5, informative=5, noise=0.0)
    hessian = 2 * (rows.x.T @ rows.x + 3.0 * torch.eye(5, dtype=torch.float64))
    expected = float(torch.linalg.eigvalsh(hessian)[-1])
    assert curvature(rows.x, 3.0) == pytest.approx(expected, rel=1e-12)


def quick(name, folder):
    item = load_item(name)
    report, document = run_item(item, ItemRequest(out=folder, track=False))
    failed = [claim for claim in report.claims if not claim.holds]
    assert failed == []
    assert document["scale"] == Scale.QUICK
    parts = [
        json.loads((folder / name / "quick" / f"seed-{seed}.json").read_text("utf-8"))["result"]
        for seed in range(item.seeds[Scale.QUICK])
    ]
    return report, parts


@pytest.fixture(scope="module")
def fifth(tmp_path_factory):
    return quick("table5", tmp_path_factory.mktemp("table5"))


@pytest.mark.slow
def test_table5_at_quick(fifth):
    report, parts = fifth
    assert len(parts) >= 10
    errors = {name: median(part[f"{name}/test"] for part in parts) for name in table5.PAPER}
    assert errors["10"] > errors["50"] > errors["100"] > errors["250"]
    assert errors["250"] < 1.5 * errors["exact"]
    assert [row["T"] for row in report.rows] == ["10", "50", "100", "250", "exact"]
    assert [row["test, median"] for row in report.rows] == list(errors.values())
    assert report.rows[0]["test, paper"] == 43.49


@pytest.mark.slow
def test_table5_numbers_are_those_of_the_closed_form(fifth):
    """The recorded λ gives the recorded errors by T steps of gradient descent written out."""
    _, parts = fifth
    train, held, test = draw_rows(0, (30, 30, 30), features=30, informative=5, noise=table5.NOISE)
    eta = 1 / curvature(train.x, table5.LARGEST)
    for name, steps in table5.STEPS.items():
        lam = torch.tensor(parts[0]["lam"][name], dtype=torch.float64)
        w = torch.zeros(30, dtype=torch.float64)
        for _ in range(steps):
            w = w - eta * 2 * (train.x.T @ (train.x @ w - train.y) + lam.exp() * w)
        for figure, rows in (("validation", held), ("test", test)):
            expected = 100 * ((rows.x @ w - rows.y) / rows.y).abs().mean()
            assert parts[0][f"{name}/{figure}"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.slow
def test_table5_claims_can_fail(fifth):
    """With the results of T = 10 and 250 exchanged, what is claimed of T is not so."""
    _, results = fifth
    parts = [
        Part(
            key=str(seed),
            seconds=0.0,
            result={**r, "10/test": r["250/test"], "250/test": r["10/test"]},
        )
        for seed, r in enumerate(results)
    ]
    assert [claim.holds for claim in table5._claims(parts)] == [False, False, False, True]
    apart = [replace(part, result={**part.result, "50/engine_gap": 1e-3}) for part in parts]
    assert not table5._claims(apart)[3].holds


@pytest.mark.nightly
def test_appendix_b_at_quick(tmp_path):
    report, parts = quick("appendix-b", tmp_path)
    for part in parts:
        grid, found = part["grid"], part["one penalty"]["together"]
        spacing = grid["lam"][1] - grid["lam"][0]
        assert min(grid["values"]) == grid["cv"]
        assert 0 < grid["values"].index(grid["cv"]) < len(grid["values"]) - 1
        assert abs(found["lam"][0] - grid["best"]) <= spacing
        assert found["cv"] <= 1.001 * grid["cv"]
        for way in appendix_b.RATES:
            assert len(part["one a feature"][way]["lam"]) == 30
            assert part["one a feature"][way]["cv"] < grid["cv"]
    search, *tuned = report.rows
    assert search["trainings of a fold"] == 25 * 5
    assert {row["trainings of a fold"] for row in tuned} == {20 * 5}
    assert {row["inner steps"] for row in tuned} == {20 * 5 * appendix_b.STEPS}
    exchanged = [
        Part(key="", seconds=0.0, result={**part, "one a feature": part["one penalty"]})
        for part in parts
    ]
    for part in exchanged:
        part.result["grid"]["cv"] *= 0.9
    assert not any(claim.holds for claim in appendix_b._claims(exchanged)[:2])
    assert not appendix_b._claims(exchanged)[3].holds


def test_cross_validation_is_the_sum_over_folds():
    """By ridge regressions in closed form, where enough steps are taken to be there."""
    *folds, test = draw_rows(0, [20] * 5 + [2000], features=30, informative=5, noise=0.5)
    cv = appendix_b._CrossValidation(folds, test)
    lam = torch.tensor([math.log(200.0)], dtype=torch.float64)
    total = 0.0
    for held in range(5):
        train = join([fold for other, fold in enumerate(folds) if other != held])
        matrix = train.x.T @ train.x + 200 * torch.eye(30, dtype=torch.float64)
        w = torch.linalg.solve(matrix, train.x.T @ train.y)
        total += float(((folds[held].x @ w - folds[held].y) ** 2).sum())
    assert cv.error(lam) * cv.noise == pytest.approx(total / 100, rel=1e-3)
    assert cv.law() < 1e-12


@pytest.mark.slow
def test_figure1_at_quick(tmp_path):
    report, parts = quick("figure1", tmp_path)
    for part in parts:
        curve, x, y = part["curves"]["f"], np.array(part["x"]), np.array(part["y"])
        features = np.tanh(np.array(part["grid"])[:, None] * x)
        minimisers = (features * y).mean(1) / (features**2).mean(1)
        np.testing.assert_allclose(curve["w"], minimisers, rtol=1e-10)
        assert curve["found"]["f"] <= min(curve["f"])
        assert all(abs(e["found"]["lam"] - 1) < 1 for e in part["curves"].values())
        moved = {
            **part,
            "curves": {**part["curves"], "f": {**curve, "w": [w + 0.02 for w in curve["w"]]}},
        }
        assert figure1._lowest_line(part) > 0 > figure1._lowest_line(moved)
    assert [row["curve"] for row in report.rows] == ["f", "T = 2", "T = 5", "T = 15"]
