"""Section 5.1: the problem against its formulas, the drawn sets, and three items of one record."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel_apps.errors import InputError
from bilevel_apps.paper import Scale, load_item
from bilevel_apps.paper.effect_of_t import figure3, figure4, table2
from bilevel_apps.paper.effect_of_t import study as effect_of_t
from bilevel_apps.paper.effect_of_t.data import EACH, Examples, Sets, draw_sets, open_characters
from bilevel_apps.paper.effect_of_t.problem import EXACT, STEPS, Counted, LinearMap, step_size
from bilevel_apps.paper.effect_of_t.study import DATA, NAMES, Study
from bilevel_apps.paper.effect_of_t.tune import Length, tune
from bilevel_apps.paper.harness.make import ItemRequest, run_item
from bilevel_apps.training.loop import train
from bilevel_core import Exact, Reverse, Spectral, Unrolled, hypergradient
from bilevel_data import load_source, open_store, write_store

RHO, DIM, CLASSES = 0.4, 4, 3
OMNIGLOT = Path(__file__).parents[3] / "shared" / "data" / "omniglot"
ITEMS = ("table2", "figure3", "figure4")
SHORT = Length(outer_steps=6, every=2, slow=2)


def centred_sets(seed=0):
    source = torch.Generator().manual_seed(seed)
    parts = []
    for each in (3, 3, 5):
        labels = torch.arange(CLASSES).repeat_interleave(each)
        middle = 3 * torch.eye(CLASSES, DIM, dtype=torch.float64)[labels]
        x = middle + torch.randn(len(labels), DIM, dtype=torch.float64, generator=source)
        parts.append((x, torch.nn.functional.one_hot(labels).double() - 1 / CLASSES, labels))
    mean = parts[0][0].mean(0)
    train, held, test = (Examples(x - mean, y, labels) for x, y, labels in parts)
    return Sets(train=train, held=held, test=test)


@pytest.fixture
def problem():
    sets = centred_sets()
    return LinearMap(sets=sets, rho=RHO, eta=step_size(sets, RHO, 0.5))


@pytest.fixture(name="H")
def feature_map():
    source = torch.Generator().manual_seed(7)
    noise = torch.randn(DIM, DIM, dtype=torch.float64, generator=source)
    return torch.eye(DIM, dtype=torch.float64) + 0.1 * noise


def written_out(problem, H, steps):
    """w_T by T steps along -∇L = 2 (XH)ᵀ(Y - XHw) - 2ρw; w_H by the paper's formula for None."""
    h, y = problem.sets.train.x @ H, problem.sets.train.y
    if steps is None:
        matrix = h.T @ h + RHO * torch.eye(DIM, dtype=torch.float64)
        return torch.linalg.solve(matrix, h.T @ y)
    w = torch.zeros(DIM, CLASSES, dtype=torch.float64)
    for _ in range(steps):
        w = w + problem.eta * 2 * (h.T @ (y - h @ w) - RHO * w)
    return w


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_the_formulas(problem, H, name):
    expected = written_out(problem, H, STEPS.get(name))
    assert apart(problem.weights(H, name), expected) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_hypergradients_are_those_of_the_formulas_and_of_the_engines(problem, H, name):
    inner = Counted(problem.sets.train, RHO)
    found = hypergradient(
        problem.closed(name, inner), problem.descent, H, steps=0, engine=Unrolled()
    )
    assert inner.count == 0
    leaf = H.clone().requires_grad_()
    w, held = written_out(problem, leaf, STEPS.get(name)), problem.sets.held
    value = ((held.y - held.x @ leaf @ w) ** 2).sum()
    (grad,) = torch.autograd.grad(value, leaf)
    assert float(found.value) == pytest.approx(float(value.detach()), rel=1e-10)
    assert apart(found.grad, grad) < 1e-9
    posed, steps = problem.by_steps(inner), STEPS.get(name, 0)
    for engine in (Exact(),) if name == EXACT else (Spectral(), Reverse()):
        by_engine = hypergradient(posed, problem.descent, H, steps=steps, engine=engine)
        assert apart(by_engine.grad, grad) < 1e-9


def test_many_steps_come_to_the_minimiser(problem, H):
    f = float(problem.outer(problem.weights(H, EXACT), H))
    gaps = [abs(float(problem.outer(problem.weights(H, name), H)) - f) for name in STEPS]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-6 * f


def test_the_curvature_is_that_of_the_hessian(problem, H):
    w = torch.zeros(DIM, CLASSES, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(
        lambda w: Counted(problem.sets.train, RHO)(w, H), w
    ).reshape(w.numel(), w.numel())
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert problem.reach(H) == pytest.approx(problem.eta * largest, rel=1e-10)
    assert problem.reach(problem.start()) == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_tuning(problem, name):
    found = tune(problem, name, SHORT, compare=True)
    looks, work = found["looks"], found["work"]
    assert [look["step"] for look in looks] == [0, 2, 4, 6]
    assert looks[-1]["f_T"] < looks[0]["f_T"]
    start = problem.start()
    w, test = written_out(problem, start, STEPS.get(name)), problem.sets.test
    assert looks[0]["f_T"] == pytest.approx(float(problem.outer(w, start)), rel=1e-10)
    exact = written_out(problem, start, None)
    assert looks[0]["f"] == pytest.approx(float(problem.outer(exact, start)), rel=1e-10)
    right = (test.x @ w).argmax(1) == test.labels
    assert looks[0]["test"] == pytest.approx(float(right.double().mean()))
    assert work["closed_steps"] == 0
    assert work["gap"] < 1e-9
    if name == EXACT:
        for other, value in looks[0]["others"].items():
            by_steps = problem.outer(written_out(problem, start, STEPS[other]), start)
            assert value == pytest.approx(float(by_steps), rel=1e-10)
    else:
        assert work["steps"] == 2 * STEPS[name]
        assert work["path_gap"] < 1e-9
    assert "work" not in tune(problem, name, replace(SHORT, outer_steps=2), compare=False)


@pytest.fixture(scope="module")
def characters(make_store):
    return open_characters(effect_of_t.WEIGHTS, make_store(size=28))


def test_the_sets_are_as_declared(characters):
    sets = draw_sets(characters, 0, 5)
    assert [len(part.x) for part in (sets.train, sets.held, sets.test)] == [15, 15, 70]
    for part in (sets.train, sets.held, sets.test):
        assert torch.equal(part.y, torch.eye(5).double()[part.labels] - 0.2)
        assert (torch.bincount(part.labels) == len(part.x) // 5).all()
        assert float(part.y.sum(0).abs().max()) < 1e-12
    assert float(sets.train.x.mean(0).abs().max()) < 1e-7
    rows = torch.cat([part.x for part in (sets.train, sets.held, sets.test)])
    assert len(torch.unique(rows, dim=0)) == len(rows)  # every image is in one set only
    again, other = draw_sets(characters, 0, 5), draw_sets(characters, 1, 5)
    assert torch.equal(again.train.x, sets.train.x)
    assert not torch.equal(other.train.x, sets.train.x)


def test_examples_of_a_label_are_of_one_class(characters):
    """Of features whose mean is not taken away, those of a class come from one of its images."""
    from bilevel_apps.embed.samples import embed_images

    split, sets = characters.split, draw_sets(characters, 3, 6)
    names = np.repeat(np.arange(split.num_classes), split.class_sizes)
    everything = torch.from_numpy(
        embed_images(characters.run, split.images, names, seed=0).features
    ).double()
    x = torch.cat([part.x for part in (sets.train, sets.held, sets.test)])
    labels = torch.cat([part.labels for part in (sets.train, sets.held, sets.test)])
    shift = everything.mean(0) - x.mean(0)  # all images are in one of the sets
    distance, nearest = torch.cdist(x + shift, everything).min(1)
    assert float(distance.max()) < 0.05  # of a network that computes in bfloat16
    assert len(nearest.unique()) == len(everything)
    for label in range(6):
        assert len(set(names[nearest[labels == label]])) == 1


def test_the_threads_stay_as_asked_for(trained, store):
    open_characters(trained, store)
    assert torch.get_num_threads() == 1


def test_stores_that_do_not_fit(trained, make_store):
    with pytest.raises(InputError, match="trained on"):
        open_characters(trained, make_store(size=20))
    with pytest.raises(InputError, match="no split 'test'"):
        open_characters(trained, make_store(classes={"train": 4}))


def test_full_asks_for_all_its_classes(trained, store, tmp_path):
    item = load_item("figure3")
    asked = ItemRequest(out=tmp_path, track=False, data=(store,), runs=(str(trained),))
    with pytest.raises(InputError, match=r"`scale`=full draws 100 classes.* has 6"):
        run_item(item, replace(asked, scale=Scale.FULL))


@pytest.fixture
def short(monkeypatch):
    """Make quick shorter still, and list what is computed."""
    calls = []

    def counted(problem, name, length, *, compare):
        calls.append((name, compare))
        return tune(problem, name, length, compare=compare)

    monkeypatch.setattr(effect_of_t, "tune", counted)
    monkeypatch.setitem(effect_of_t.LENGTHS, False, SHORT)
    return calls


@pytest.mark.slow
def test_three_items_share_one_computation(short, config, store, tmp_path):
    # Of the four filters of the other runs all but one may be dead, and all features equal.
    train(config(model__filters=16), tmp_path / "run", resume=False)
    runs = (str(tmp_path / "run"),)
    asked = ItemRequest(out=tmp_path, track=False, data=(store,), runs=runs, seeds=2)
    reports = {name: run_item(load_item(name), asked)[0] for name in ITEMS}
    assert short == [(name, seed == 0) for seed in range(2) for name in NAMES]
    records = {f"seed-{seed}-T-{name}.json" for seed in range(2) for name in NAMES}
    shared = tmp_path / "effect-of-t" / "quick"
    assert {path.name for path in shared.glob("*.json")} == records
    for name in ITEMS:
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / f"{name}.svg").read_text("utf-8").startswith("<?xml")
        assert [row["T"] for row in reports[name].rows] == list(NAMES)
        text = (tmp_path / f"{name}.md").read_text("utf-8")
        assert "momentum 0.9" in text
        assert "6 of the 6 test classes of tiny" in text
    failed = [claim.text for claim in reports["table2"].claims if not claim.holds]
    assert failed == []
    before = (tmp_path / "figure4.csv").read_bytes()
    (shared / "seed-1-T-16.json").unlink()
    run_item(load_item("figure4"), asked)
    assert short[2 * len(NAMES) :] == [("16", False)]
    assert (tmp_path / "figure4.csv").read_bytes() == before


def results(**changed):
    """What `tune` returns, made up: f_T = 10 + 8/T - k/10, and a test accuracy with a maximum."""
    found = {}
    for place, name in enumerate(NAMES):
        excess = 8 / STEPS[name] if name != EXACT else 0.0
        top = 30 - 5 * place
        looks = [
            {
                "step": step,
                "f_T": 10 + excess - step / 10,
                "f": 10 - step / 10,
                "reach": 0.5,
                "train": 1.0,
                "held": 0.99,
                "test": 0.9 - abs(step - top) / 500,
                "others": {T: 10 + 8 / STEPS[T] - step / 10 for T in STEPS},
            }
            for step in range(0, 31, 5)
        ]
        steps = STEPS.get(name)
        work = {"closed_steps": 0, "closed_gflop": 0.5, "gap": 1e-12}
        if steps:
            work |= {"steps": 2 * steps, "gflop": 0.1 + 0.2 * steps, "seconds": 1.0}
            work |= {"path_gap": 1e-12}
        found[name] = [{"eta": 0.1, "seconds": 0.5, "looks": looks, "work": work}]
    for path, value in changed.items():
        name, *keys, last = path.split("/")
        place = found[name][0]
        for key in keys:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
    return Study(results=found, settings={}, length=SHORT, seconds=1.0)


def verdicts(item, **changed):
    return [claim.holds for claim in item._claims(results(**changed))]


def test_claims_of_made_up_results_hold():
    assert verdicts(table2) == [True] * 4
    assert verdicts(figure3) == [True] * 2
    assert all(verdicts(figure4))


@pytest.mark.parametrize(
    ("item", "place", "changed"),
    [
        (table2, 0, {"64/work/steps": 129}),
        (table2, 0, {"64/work/gflop": 13.5}),
        (table2, 1, {"16/work/closed_steps": 1}),
        (table2, 1, {"256/work/closed_gflop": 0.6}),
        (table2, 2, {"4/work/gap": 1e-5}),
        (table2, 2, {"4/work/path_gap": 1e-5}),
        (table2, 3, {"exact/work/gap": 1e-5}),
        (figure3, 0, {"exact/looks/3/others/16": 30.0}),
        (figure3, 1, {"256/looks/-1/f_T": 6.9}),
        (figure3, 1, {"4/looks/-1/f_T": 7.0}),
        (figure4, 0, {"exact/looks/-1/test": 0.95}),
        (figure4, 1, {"64/looks/0/test": 0.99}),
        (figure4, 2, {"4/looks/-1/held": 0.9}),
    ],
)
def test_claims_can_fail(item, place, changed):
    assert not verdicts(item, **changed)[place]


@pytest.mark.data
@pytest.mark.nightly
def test_quick_on_omniglot(tmp_path):
    if not OMNIGLOT.is_dir():
        pytest.skip(f"needs the two zips of Omniglot in {OMNIGLOT}")
    write_store(tmp_path / "o.h5", load_source("omniglot", OMNIGLOT))
    assert open_store(tmp_path / "o.h5").manifest.name in DATA
    asked = ItemRequest(out=tmp_path / "out", track=False, data=(tmp_path / "o.h5",))
    for name in ITEMS:
        report, document = run_item(load_item(name), asked)
        assert [claim.found for claim in report.claims if not claim.holds] == []
        assert "has not seen these classes" in document["settings"]["features"]
    first = json.loads((tmp_path / "out/effect-of-t/quick/seed-0-T-exact.json").read_text())
    assert first["settings"]["classes"].startswith("40 of the 423 test classes of omniglot")
    assert len(first["result"]["looks"]) == 21
    assert EACH * 40 == 120
