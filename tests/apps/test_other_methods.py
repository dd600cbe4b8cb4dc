"""The methods of Table 3 and their kin as runs, and what is refused of them."""

import numpy as np
import pytest
import torch

from bilevel_apps.config import Config, list_presets, load_preset, parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.predict.classifier import FewShotClassifier
from bilevel_apps.predict.export import export_run
from bilevel_apps.runs.build import make_learner
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.training.loop import train
from bilevel_data import open_store
from bilevel_meta.registry import LEARNERS

INNER = ("boil", "fomaml", "imaml", "learned-optimizer", "maml", "maml++", "meta-lstm", "meta-sgd")
OPTIONS = {
    "baseline": {"steps": 5},
    "baseline++": {"steps": 5},
    "imaml": {"steps": 2},
    "learned-optimizer": {"steps": 2, "hidden": 4},
    "maml": {"steps": 2, "step_size": 0.05},
    "meta-lstm": {"steps": 2, "hidden": 4},
    "meta-networks": {"embedding": 4, "hidden": 3},
    "neural-statistician": {"context": 4, "width": 8},
    "relation": {"width": 4},
    "reptile": {"steps": 2, "test_steps": 2},
    "snail": {"filters": 8},
}
QUICK = ("maml", "prototypical")


def settings_of(method):
    inner = method in INNER or method == "reptile"
    changes = {"method": method, "model__norm": "support" if inner else "ghost"}
    if method in OPTIONS:
        changes["options"] = OPTIONS[method]
    return changes


each = pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in LEARNERS],
)


@each
def test_a_run_of_every_method(method, tmp_path, config, store):
    changes = settings_of(method) | {"train__validate_every": 2, "train__validate_episodes": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(train__steps=4, **changes), whole, resume=False)
    train(config(train__steps=2, **changes), parts, resume=False)
    train(config(train__steps=4, **changes), parts, resume=True)
    a, b = (load_checkpoint(RunFolder(f).last).tensors for f in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)

    report = evaluate_run(whole, EvaluationRequest(episodes=3, baselines=method == "maml"))
    assert 0 <= report.score.accuracy <= 1
    assert report.norm == changes["model__norm"]

    images = open_store(store).load("test").images
    shown = np.concatenate([images[20 * k : 20 * k + 1] for k in range(5)])
    made = FewShotClassifier(whole, device="cpu").fit(shown, list("abcde"))
    found = made.predict_proba(images[:3])
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(made.predict_proba(images[:1])[0], found[0], atol=1e-5)


@pytest.fixture(scope="module")
def prototypes(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("runs") / "prototypical"
    train(config(train__steps=1, method="prototypical"), folder, resume=False)
    return folder


@pytest.mark.parametrize("asked", [{"steps": (3,)}, {"lr": (0.1, 0.2)}])
def test_a_head_without_steps_has_no_others(prototypes, asked):
    with pytest.raises(InputError, match="prototypical"):
        evaluate_run(prototypes, EvaluationRequest(episodes=2, **asked))


def test_a_head_without_steps_is_not_exported(prototypes, tmp_path):
    with pytest.raises(InputError, match="prototypical"):
        export_run(prototypes, tmp_path / "program.pt2", way=None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "maml"}, "norm='ghost'"),  # running averages are of no adapted network
        ({"method": "maml", "model__norm": "support", "options": {"stepz": 3}}, "stepz"),
        ({"method": "maml", "model__norm": "support", "options": {"steps": -1}}, "steps"),
        ({"method": "prototypical", "options": {"steps": 3}}, "steps"),
        ({"method": "hyper-representation", "options": {"steps": 3}}, "options"),
        ({"method": "svm", "options": {"bound": "much"}}, "svm"),
        ({"method": "simpleshot", "model__outputs": 3}, "model.outputs"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_run(changes, named, tmp_path, config):
    with pytest.raises(InputError, match=named) as found:
        train(config(**changes), tmp_path / "run", resume=False)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


def test_another_normalization_that_does_not_suit_is_refused(tmp_path, config):
    folder = tmp_path / "run"
    changes = settings_of("maml") | {"train__steps": 1}
    train(config(**changes), folder, resume=False)
    with pytest.raises(InputError, match="`norm`=batch"):
        evaluate_run(folder, EvaluationRequest(episodes=2, norm="batch"))
    report = evaluate_run(folder, EvaluationRequest(episodes=2, norm="episode"))
    assert report.norm == "episode"


def test_every_learner_is_a_value_of_the_configuration():
    values = Config.model_fields["method"].annotation.__args__
    assert set(LEARNERS) < set(values)


PRESETS = [name for name in list_presets() if "method" in load_preset(name)]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_of_a_method_makes_its_learner(preset):
    config = parse_config(load_preset(preset), preset)
    shape = (28, 28, 1) if preset.endswith("omniglot") else (84, 84, 3)
    made = make_learner(config, shape, torch.device("meta"))
    assert type(made) is LEARNERS[config.method]
    assert preset.startswith(f"paper/{config.method.replace('++', '-plus-plus')}-")


def test_every_method_has_a_preset_for_both_data_sets():
    found = {(load_preset(name)["method"], name.partition("-")[0]) for name in PRESETS}
    assert len(PRESETS) == 2 * len(LEARNERS)
    assert {method for method, _ in found} == set(LEARNERS)
