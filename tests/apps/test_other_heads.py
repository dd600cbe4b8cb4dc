"""Another head than the run's own: T steps or the optimum, wherever heads are made."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.few_shot import FewShotClassifier
from bilevel_apps.predict.export import export_run
from bilevel_apps.predict.predict import PredictRequest, predict_pictures
from bilevel_apps.runs.load import load_run
from bilevel_apps.training.loop import train
from bilevel_data import open_store
from bilevel_meta import adapt
from bilevel_meta.methods.hyper_representation import InnerLoop

VAL = {"split": "val", "episodes": 6, "shot": 2}


@pytest.fixture(scope="module")
def turned(tmp_path_factory, config):
    """A run of five steps to which rotated copies are classes."""
    folder = tmp_path_factory.mktemp("runs") / "turned"
    train(config(episode__rotations=True, train__steps=2), folder, resume=False)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def pictures(tmp_path, store):
    """Labelled and other pictures of two classes, unequal numbers of them, as a request."""
    images = open_store(store).load("test").images.reshape(6, 20, 16, 16)
    for c, name in enumerate(("ash", "birch")):
        for k in range(4):
            folder = tmp_path / (f"support/{name}" if k <= 2 * c else "query")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[c, k]).save(folder / f"{name}-{k}.png")
    return {"support": tmp_path / "support", "query": tmp_path / "query"}


def evaluated(folder, **changes):
    return evaluate_run(folder, EvaluationRequest(**VAL | changes)).as_json()


def test_a_run_of_t_steps_is_asked_for_its_optimum(copy, pictures, capsys):
    report = evaluated(copy, steps=(5, None))
    assert "estimated from the classes of its training" in capsys.readouterr().err
    assert [row["steps"] for row in report["curve"]] == [5, None]
    alone = evaluated(copy, steps=(None,))
    assert (alone["steps"], alone["head"]) == (None, "heads at their optimum")
    assert alone["accuracy"] == report["curve"][1]["accuracy"]
    assert report["steps"] == 5
    found = predict_pictures(copy, PredictRequest(**pictures, steps=(None,)))
    assert found.inner.steps is None
    support = np.stack([np.asarray(image) for image in found.support_images])
    model = FewShotClassifier(copy, steps="optimum").fit(
        support, ["ash", "birch", "birch", "birch"]
    )
    probabilities = model.predict_proba(found.query_images)
    np.testing.assert_allclose(probabilities, found.probabilities, atol=1e-12)


def test_the_optimum_is_chosen_with_what_it_needs(copy, pictures, monkeypatch, tmp_path):
    monkeypatch.setattr("bilevel_apps.evaluate.evaluate.best_of", lambda curve, _own: curve[-1])
    report = evaluated(copy, steps=(1, None), choose=True)
    optimum = report["curve"][-1]
    assert optimum["steps"] is None
    kept = json.loads((copy / "chosen.json").read_text())
    assert kept["optimum"].keys() == {"shrinkage", "temperature", "decay", "running_mean"}
    run = load_run(copy, "cpu")
    assert (run.inner.steps, run.trained_inner.steps) == (None, 5)
    assert evaluated(copy)["accuracy"] == optimum["accuracy"]
    # Its store is no longer needed: the numbers are beside the weights.
    found = predict_pictures(copy, PredictRequest(**pictures))
    assert found.inner.steps is None
    assert predict_pictures(copy, PredictRequest(**pictures, steps=(5,))).inner.steps == 5


@pytest.mark.parametrize(
    "changed", [{"decay": 0.0}, {"decay": None}, {"running_mean": []}, {"running_mean": [1]}]
)
def test_damaged_numbers_of_an_optimum(copy, changed):
    numbers = {"shrinkage": 1.0, "temperature": 9.0, "decay": 0.1, "running_mean": [0.0] * 4}
    choice = {"steps": None, "checkpoint_sha256": load_run(copy, "cpu").sha256}
    (copy / "chosen.json").write_text(json.dumps(choice | {"optimum": numbers | changed}))
    with pytest.raises(InputError, match=r"chosen\.json: damaged: delete it"):
        load_run(copy, "cpu")


def test_the_optimum_of_a_run_that_has_it_may_be_chosen_again(tmp_path, config, monkeypatch):
    train(config(inner__steps=None, train__steps=2), tmp_path / "run", resume=False)
    monkeypatch.setattr("bilevel_apps.evaluate.evaluate.best_of", lambda curve, _own: curve[-1])
    evaluated(tmp_path / "run", steps=(1, 5), choose=True)
    assert load_run(tmp_path / "run", "cpu").inner.steps is None
    assert evaluated(tmp_path / "run")["head"] == "heads at their optimum"
    evaluated(tmp_path / "run", calibrate=True)
    evaluated(tmp_path / "run", steps=(1, 5), choose=True)
    assert evaluated(tmp_path / "run")["head"] == "heads at their optimum, calibrated"


def test_heads_that_are_too_sure_are_calibrated(tmp_path, config):
    folder = tmp_path / "run"
    train(config(inner__steps=None, train__steps=2), folder, resume=False)
    run = load_run(folder, "cpu")
    mean = [0.0] * run.representation.encoder.backbone.dim
    sure = {"shrinkage": 1.0, "temperature": 1e5, "decay": 0.03, "running_mean": mean}
    choice = {"steps": None, "checkpoint_sha256": run.sha256, "optimum": sure}
    (folder / "chosen.json").write_text(json.dumps(choice))
    before = evaluated(folder)
    (folder / "chosen.json").unlink()
    asked = evaluated(folder, calibrate=True)
    kept = json.loads((folder / "chosen.json").read_text())
    assert (kept["optimum"], kept["curve"]) == (asked["chosen"]["optimum"], None)
    after = evaluated(folder)
    assert after["accuracy"] == asked["accuracy"]
    assert after["head"] == asked["head"] == "heads at their optimum, calibrated"
    assert after["calibration_error"] < before["calibration_error"] / 2


def test_pictures_are_labelled_by_steps_of_ones_own(trained, pictures):
    own = predict_pictures(trained, PredictRequest(**pictures))
    other = predict_pictures(trained, PredictRequest(**pictures, steps=(50,), lr=0.02))
    assert other.inner == InnerLoop(50, 0.02)
    assert own.inner.steps == 5
    assert not np.allclose(own.probabilities, other.probabilities)
    model = FewShotClassifier(trained, steps=50, step_size=0.02)
    model.fit(other.support_images, ["ash", "birch", "birch", "birch"])
    probabilities = model.predict_proba(other.query_images)
    np.testing.assert_allclose(probabilities, other.probabilities, atol=1e-12)
    with pytest.raises(InputError, match="give one"):
        predict_pictures(trained, PredictRequest(**pictures, steps=(1, 5)))


def test_upright_classes_stand_beside_rotated_ones(turned):
    report = evaluated(turned, steps=(1, 5, None), way=4)
    own = next(row for row in report["curve"] if row["steps"] == 5)
    assert own["upright"] == report["upright"]
    for row in report["curve"]:
        alone = evaluated(turned, steps=(row["steps"],), way=4)
        assert alone["upright"] == row["upright"]


def test_episodes_far_from_the_training_cost_a_line(tmp_path, config, monkeypatch, capsys):
    train(config(inner__steps=None, train__steps=2), tmp_path / "run", resume=False)
    monkeypatch.setattr(adapt, "SETTLED", 0)
    monkeypatch.setattr(adapt, "FAR", 1e9)
    capsys.readouterr()
    evaluated(tmp_path / "run")
    near = capsys.readouterr().err.count("unlike those that the weights learned from")
    monkeypatch.setattr(adapt, "FAR", 0.0)
    evaluated(tmp_path / "run")
    assert capsys.readouterr().err.count("unlike those that the weights learned from") == 1
    assert near == 0


def test_a_store_that_is_gone_is_asked_for(config, make_store, tmp_path, pictures):
    path = make_store(seed=5)
    train(config(data=str(path), train__steps=1), tmp_path / "run", resume=False)
    moved = path.rename(tmp_path / "elsewhere.h5")
    wanted = PredictRequest(**pictures, steps=(None,))
    with pytest.raises(InputError, match="give it with `data`"):
        predict_pictures(tmp_path / "run", wanted)
    given = PredictRequest(**pictures, steps=(None,), data=moved)
    assert predict_pictures(tmp_path / "run", given).inner.steps is None


@pytest.mark.nightly
def test_an_exported_program_has_the_chosen_head(copy, monkeypatch, tmp_path):
    monkeypatch.setattr("bilevel_apps.evaluate.evaluate.best_of", lambda curve, _own: curve[-1])
    evaluated(copy, steps=(1, None), choose=True)
    assert export_run(copy, tmp_path / "run.pt2").difference < 1e-5
