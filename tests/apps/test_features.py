"""`bilevel-data features`: a frozen backbone's features once, and what runs on them."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.features import FeaturesRequest, write_features
from bilevel_apps.predict.classifier import FewShotClassifier
from bilevel_apps.predict.predict import PredictRequest, predict_pictures
from bilevel_apps.runs.load import load_run
from bilevel_apps.scoring.feature_table import feature_table
from bilevel_apps.scoring.heads import head_scores
from bilevel_apps.training.loop import train
from bilevel_data import open_store, verify_store
from bilevel_models import RUNNING, as_images, create_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config):
    """A run whose heads are at their optimum."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(config(inner__steps=None), folder, resume=False)
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory, store, whole):
    """The store of its features."""
    path = tmp_path_factory.mktemp("features") / "features.h5"
    write_features(FeaturesRequest(store=store, weights=whole, out=path, device="cpu"))
    return path


def request(path, **changes):
    given = {"data": path, "episodes": 12, "query": 5, "device": "cpu", "baselines": True}
    return EvaluationRequest(**given | changes)


def as_report(found):
    return found if isinstance(found, dict) else found.as_json()


def test_the_store_says_what_made_it(features, store, whole, command):
    manifest = verify_store(features)
    made, pictures = manifest.features, open_store(store).manifest
    assert (made.backbone, made.weights) == ("omniglot-net", "whole")
    assert made.images == {name: info.sha256 for name, info in pictures.splits.items()}
    assert manifest.preprocessing == pictures.preprocessing
    assert [s.class_names for s in manifest.splits.values()] == [
        s.class_names for s in pictures.splits.values()
    ]
    printed = command("data", "info", features)
    assert printed.status == 0
    assert made.weights_sha256[:12] in printed.out


def test_features_are_the_encoder_s(features, store, whole):
    run = load_run(whole, "cpu")
    pixels = open_store(store).load("val").images[:7]
    with torch.no_grad():
        (expected,) = run.learner.encoder(as_images(np.array(pixels))[None], training=False)
    found = torch.from_numpy(np.array(open_store(features).load("val").images[:7, 0, 0]))
    torch.testing.assert_close(torch.nn.functional.normalize(found, dim=1), expected[0])


@pytest.mark.parametrize("shot", [1, 5])
def test_the_run_scores_the_same_on_its_features(features, store, whole, shot):
    pictures = as_report(evaluate_run(whole, request(store, shot=shot)))
    vectors = as_report(evaluate_run(whole, request(features, shot=shot)))
    for key in ("accuracy", "ci95", "calibration_error"):
        assert vectors[key] == pytest.approx(pictures[key], abs=1e-6)
    for name in ("nearest class mean", "logistic regression"):
        assert vectors["baselines"][name] == pytest.approx(pictures["baselines"][name], abs=1e-6)
    assert len(vectors["features"]) == 64


def test_threads_change_nothing(features, whole):
    run = load_run(whole, "cpu")
    store = open_store(features)
    run = run.for_store(store)
    sampler = run.sampler(store, "test", seed=0, rotations=False, query=5)
    table = feature_table(run.learner, [sampler], episodes=900, device=run.device)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        scores = head_scores(
            run.learner,
            sampler,
            inner=[run.inner],
            episodes=900,
            device=run.device,
            table=table,
        )
        assert torch.get_num_threads() == threads
        found.append(scores.accuracies[run.inner])
    assert np.array_equal(*found)
    assert 0.2 < found[0].mean() <= 1


def test_heads_are_trained_on_features(features, store, command, tmp_path):
    run = tmp_path / "head"
    given = ("--preset", "features", "--out", run, "--set", "tracking.enabled=false")
    small = (
        *("--set", "train.steps=3", "--set", "train.validate_episodes=4"),
        *("--set", "episode.query=5", "--set", "model.outputs=8"),
    )
    assert command("train", *given, *small, "--data", features).status == 0
    done = command("eval", run, "--episodes", "8", "--json", "--baselines")
    report = json.loads(done.out)
    assert set(report["baselines"]) == {
        "nearest neighbour",
        "nearest class mean",
        "logistic regression",
    }
    for refused in (
        command("eval", run, "--data", store),
        command("train", *given, "--resume", "--set", "train.augment=[flip]"),
    ):
        assert refused.status == 2
    picture = tmp_path / "a.png"
    for use in (
        lambda: predict_pictures(run, PredictRequest(support=_classes(tmp_path), query=picture)),
        lambda: FewShotClassifier(run=str(run)).fit(np.zeros((2, 4), np.uint8), [0, 1]),
    ):
        with pytest.raises((InputError, ValueError), match="features"):
            use()


def _classes(folder: Path) -> Path:
    for name in ("a", "b"):
        (folder / "support" / name).mkdir(parents=True)
        Image.new("L", (16, 16)).save(folder / "support" / name / "1.png")
    Image.new("L", (16, 16)).save(folder / "a.png")
    return folder / "support"


@pytest.mark.parametrize(
    "changed",
    [
        ("model.name=omniglot-net",),
        ("method=maml",),
        ("method=prototypical",),
        ("train.augment=[shift]",),
        ("train.small=1",),
        ("episode.rotations=true",),
        ("model.norm=episode", "method=no-such"),
    ],
)
def test_what_does_not_suit_features_is_refused(features, command, tmp_path, changed):
    changes = [part for each in changed for part in ("--set", each)]
    done = command(
        *("train", "--preset", "features", "--data", features, "--out", tmp_path / "r"), *changes
    )
    assert (done.status, bool(done.error)) == (2, True)


@pytest.mark.parametrize(
    "method", ["ridge", "prototypical", "baseline++", "matching", "simpleshot"]
)
def test_methods_with_heads_train_on_features(features, command, tmp_path, method):
    given = [f"method={method}", "train.steps=2", "train.validate_episodes=4", "episode.query=5"]
    given += ["tracking.enabled=false", "train.meta_batch=2", "model.unit_length=false"]
    if method in ("prototypical", "matching"):
        given.append("model.outputs=8")
    changes = [part for each in given for part in ("--set", each)]
    out = tmp_path / "r"
    done = command("train", "--preset", "features", "--data", features, "--out", out, *changes)
    assert done.status == 0, done.err
    assert command("eval", out, "--episodes", "4").status == 0


def test_features_of_other_weights_are_refused(features, trained, command):
    done = command("eval", trained, "--data", features)
    assert done.status == 2
    assert "features" in done.error
    done = command("eval", "pretrained:omniglot-5way-1shot", "--data", features)
    assert done.status == 2


def test_a_network_by_name_with_weights_of_a_file(store, command, tmp_path):
    torch.manual_seed(0)
    network = create_model("omniglot-net", channels=1, image_size=16, filters=64)
    file, out = tmp_path / "w.safetensors", tmp_path / "f.h5"
    safetensors.torch.save_file(network.state_dict(), file)
    given = ("data", "features", store, file, "--out", out)
    assert command(*given, "--device", "cpu").status == 2  # which network?
    assert command(*given, "--model", "c4l").status == 2
    done = command(*given, "--model", "omniglot-net", "--device", "cpu")
    assert done.status == 0, done.err
    pixels = np.array(open_store(store).load("train").images[:3])
    with torch.no_grad():
        expected = network(as_images(pixels), RUNNING)
    found = torch.from_numpy(np.array(open_store(out).load("train").images[:3, 0, 0]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert command(*given, "--model", "omniglot-net").status == 2  # it is there
    assert command("data", "features", out, file, "--out", tmp_path / "g.h5").status == 2
