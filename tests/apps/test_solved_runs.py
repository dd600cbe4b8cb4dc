"""Runs whose heads are solved to their optimum: trained, resumed, scored, used and exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel_apps.config import load_preset, parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.evaluate.report import CLASS_MEANS, REGRESSION, EvaluationReport
from bilevel_apps.few_shot import FewShotClassifier
from bilevel_apps.predict.export import TOLERANCE, export_run
from bilevel_apps.runs.load import load_run
from bilevel_apps.training.loop import train
from bilevel_meta.adapt import far_from
from bilevel_models import heads, list_pretrained

CHANGES = {"inner__steps": None}


@pytest.fixture(scope="module")
def solved(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("runs") / "solved"
    train(config(**CHANGES), folder, resume=False)
    return folder


def images(classes, shots, seed=0):
    """Pictures of classes that differ in brightness, unequal numbers of each, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), shots)
    noise = random.integers(0, 60, (len(labels), 16, 16, 1))
    return (noise + 60 * labels[:, None, None, None]).astype(np.uint8), labels


def test_what_fits_heads_is_learned_and_kept(solved):
    solver = load_run(solved, "cpu").learner.solver
    fresh = heads.HeadSolver(len(solver.running_mean))
    assert solver.running_mean.abs().max() > 0
    for name, value in solver.named_parameters():
        assert value != dict(fresh.named_parameters())[name], name


def test_a_run_that_was_interrupted_ends_with_the_same_bits(solved, config, tmp_path):
    train(config(**CHANGES, train__steps=3, train__schedule="constant"), tmp_path, resume=False)
    train(config(**CHANGES), tmp_path, resume=True)
    whole, again = (load_run(folder, "cpu").learner.state_dict() for folder in (solved, tmp_path))
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name


def test_evaluation_says_which_head_and_how_calibrated(solved):
    report = evaluate_run(
        solved, EvaluationRequest(split="val", episodes=4, shot=2, baselines=True)
    )
    assert (report.inner.steps, report.head) == (None, "heads at their optimum")
    assert 0 <= report.calibration_error <= 1
    assert {CLASS_MEANS, REGRESSION} <= report.baselines.keys()
    assert report.baselines[REGRESSION].episodes == 4
    assert EvaluationReport.of(json.loads(json.dumps(report.as_json()))) == report


def test_steps_stand_beside_the_optimum(solved):
    report = evaluate_run(
        solved, EvaluationRequest(split="val", episodes=4, steps=(1, 5), lr=(0.1,))
    )
    assert [point.inner.steps for point in report.curve] == [1, 5, None]
    single = evaluate_run(solved, EvaluationRequest(split="val", episodes=4, steps=(5,), lr=(0.1,)))
    assert single.inner.steps == 5
    assert single.score == report.curve[1].score
    with pytest.raises(InputError, match="`steps`"):
        evaluate_run(solved, EvaluationRequest(split="val", episodes=4, lr=(0.1,)))


def test_a_classifier_takes_any_numbers_of_pictures(solved):
    x, y = images(3, (4, 1, 2))
    model = FewShotClassifier(solved).fit(x, y)
    probabilities = model.predict_proba(images(3, (2, 2, 2), 1)[0])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    steps = FewShotClassifier(solved, steps=5, step_size=0.1).fit(x, y)
    assert not np.allclose(model.predict_proba(x), steps.predict_proba(x))
    with pytest.raises(ValueError, match="give steps"):
        FewShotClassifier(solved, step_size=0.1).fit(x, y)


@pytest.mark.slow
def test_an_exported_program_gives_the_same_answers(solved, tmp_path):
    assert export_run(solved, tmp_path / "run.pt2").difference <= TOLERANCE


@pytest.mark.parametrize("card", list_pretrained(), ids=lambda card: card.tag)
def test_weights_in_the_package_are_solved(card):
    run = load_run(Path(f"pretrained:{card.tag}"), "cpu")
    assert run.learner.inner.steps is None
    assert {n: v for n, v in card.head.items() if v <= 0} == {}


def test_settings_that_name_steps_mean_descent():
    """So do those that a run was saved with before there was another head."""
    assert parse_config({"inner": {"steps": 5, "lr": 0.1}}, "old").inner.steps == 5
    assert parse_config({}, "new").inner.steps is None
    paper = parse_config(load_preset("paper/omniglot-5way-1shot"), "paper")
    assert paper.inner.steps == 5
    assert parse_config(load_preset("omniglot-5way-1shot"), "own").inner.steps is None


def test_pictures_unlike_those_of_the_training_cost_a_line():
    solver = heads.HeadSolver(2)
    features, targets = torch.tensor([[[1.0, 0.2], [1.0, -0.2]]]), torch.eye(2)[None]
    solver.running_mean.copy_(torch.tensor([1.0, 0.0]))
    near = float(solver.surprise(features, targets))
    solver.running_mean.copy_(torch.tensor([-1.0, 0.0]))
    far = float(solver.surprise(features, targets))
    assert far == pytest.approx(2 * 4 / 0.08, rel=1e-5)
    assert far_from(near, "these", 1000) is None
    assert "these" in far_from(far, "these", 1000)
    assert far_from(far, "these", 10) is None  # nothing is typical yet
