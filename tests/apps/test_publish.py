"""Weights that come with bilevel-models: made of a run, and standing in for one."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tools.publish import weights as publishing
from tools.publish.weights import PublishRequest, command_of, publish_run

from bilevel_apps.compare.paired import EpisodeChoice, paired_scores
from bilevel_apps.compare.select import choose_runs
from bilevel_apps.config import load_preset, parse_config, with_settings
from bilevel_apps.embed import EmbedRequest, embed_run
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.predict.classifier import FewShotClassifier
from bilevel_apps.predict.predict import PredictRequest, predict_pictures
from bilevel_apps.runs.load import load_run
from bilevel_apps.scoring.score import score
from bilevel_apps.training.loop import train
from bilevel_data import open_store
from bilevel_models import list_pretrained, pretrained_card
from bilevel_models.pretrained import weights as pretrained

TAG = Path("pretrained:tiny")


def scored(folder, path, **changes):
    report = evaluate_run(folder, EvaluationRequest(episodes=8, **changes))
    path.write_text(json.dumps(report.as_json()))
    return path


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publish a run as `pretrained:tiny`, and let the package find it there."""
    out = tmp_path / "weights"
    monkeypatch.setattr(pretrained, "WEIGHTS", out)

    def run(folder, *reports):
        reports = reports or (scored(folder, tmp_path / "report.json"),)
        publish_run(folder, out, PublishRequest(tag="tiny", reports=reports))
        return pretrained_card("tiny")

    return run


@pytest.fixture
def own(tmp_path, store):
    """Two classes of a picture each, and a query."""
    images = open_store(store).load("test").images.reshape(6, 20, 16, 16)
    for place, picture in {
        "support/ash/a.png": images[0, 0],
        "support/birch/b.png": images[1, 0],
        "query/0.png": images[1, 1],
    }.items():
        (tmp_path / place).parent.mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / place)
    return PredictRequest(support=tmp_path / "support", query=tmp_path / "query")


def test_a_tag_stands_in_for_the_run_that_it_is_from(publish, trained, store, own):
    publish(trained)
    before, now = load_run(trained, "cpu"), load_run(TAG, "cpu")
    expected = before.learner.state_dict()
    for name, tensor in now.learner.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    for name in ("step", "image_shape", "preprocessing", "data"):
        assert getattr(now, name) == getattr(before, name)
    assert now.config.model == before.config.model
    a, b = predict_pictures(trained, own), predict_pictures(TAG, own)
    np.testing.assert_array_equal(a.probabilities, b.probabilities)
    images = open_store(store).load("test").images[:40]
    labels = np.repeat(["one", "two"], 20)
    model = FewShotClassifier("pretrained:tiny").fit(images, labels)
    other = FewShotClassifier(trained).fit(images, labels)
    np.testing.assert_array_equal(model.predict_proba(images), other.predict_proba(images))


def test_a_tag_can_be_evaluated_and_drawn(publish, trained, store, tmp_path, monkeypatch):
    publish(trained)
    monkeypatch.chdir(tmp_path)
    before = evaluate_run(trained, EvaluationRequest(episodes=8))
    now = evaluate_run(TAG, EvaluationRequest(episodes=8, data=store))
    for key in ("score", "split_sha256", "checkpoint_step"):
        assert getattr(now, key) == getattr(before, key)
    assert now.inner.steps == before.inner.steps
    assert now.checkpoint == "pretrained:tiny"
    request = EmbedRequest(data=store, classes=3, pairs=2, images=60, dpi=50)
    a, b = (embed_run(run, tmp_path / str(k), request) for k, run in enumerate((trained, TAG)))
    assert a.figures == b.figures
    with pytest.raises(InputError, match="no data: give `data`"):
        evaluate_run(TAG, EvaluationRequest(episodes=8))
    several = EvaluationRequest(episodes=8, data=store, split="val", steps=(1, 5), choose=True)
    monkeypatch.setattr(
        "bilevel_apps.evaluate.evaluate.load_run", lambda *_: pytest.fail("began to score")
    )
    with pytest.raises(InputError, match="`choose`: pretrained:tiny is part of the package"):
        evaluate_run(TAG, several)
    assert not TAG.exists()


def test_a_tag_is_compared_with_the_run_that_it_is_from(publish, trained):
    publish(trained)
    own, there = choose_runs([str(trained), str(TAG)], lambda: pytest.fail("no database"))
    assert (there.name, there.status, there.id) == ("pretrained:tiny", "pretrained", "")
    assert there.params["model.name"] == own.params["model.name"]
    found = paired_scores([own, there], EpisodeChoice(count=8, device="cpu"))
    assert found.scores[0] == found.scores[1]
    assert found.differences[1] == score(np.zeros(8))
    with pytest.raises(InputError, match="pretrained:none: no pretrained weights 'none'"):
        choose_runs(["pretrained:none"], lambda: pytest.fail("no database"))


def test_the_card_says_what_was_run_and_no_more(publish, trained, store, tmp_path):
    report = scored(trained, tmp_path / "5way.json")
    other = scored(trained, tmp_path / "3way.json", way=3, shot=2, split="val", seed=4)
    card = publish(trained, report, other)
    first, second = card.accuracy
    found = json.loads(report.read_text())
    assert first.items() <= found.items()
    assert (first["split"], first["way"], first["episodes"]) == ("test", 5, 8)
    assert (second["split"], second["way"], second["shot"], second["seed"]) == ("val", 3, 2, 4)
    manifest = open_store(store).manifest
    assert card.data == {
        "name": "tiny",
        "source": "made by a test",
        "licence": "CC0",
        "splits": {name: info.sha256 for name, info in manifest.splits.items()},
    }
    assert card.options == {"channels": 1, "image_size": 16, "filters": 4}
    run = load_run(trained, "cpu")
    assert (card.model, card.normalization, card.unit_length) == ("omniglot-net", "ghost", True)
    assert (card.steps, card.training["seed"], card.training["step"]) == (5, 0, run.step)
    learned = run.learner.state_dict()
    assert card.step_size == pytest.approx(float(learned["log_lr"].exp()), rel=1e-6)
    assert card.scale == pytest.approx(float(learned["log_scale"].exp()), rel=1e-6)
    text = (tmp_path / "weights" / "tiny.json").read_text("utf-8")
    assert str(tmp_path.parent) not in text
    assert str(store.parent) not in text
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == [
        "tiny.json",
        "tiny.safetensors",
    ]


def test_averaged_weights_and_a_chosen_step_number_are_what_is_published(publish, config, tmp_path):
    folder = tmp_path / "run"
    train(config(train__average=0.5), folder, resume=False)
    several = EvaluationRequest(episodes=8, split="val", steps=(2, 3), choose=True)
    chosen = evaluate_run(folder, several).chosen
    card = publish(folder)
    assert card.steps == load_run(TAG, "cpu").learner.steps == chosen.steps
    assert load_run(TAG, "cpu").config.inner.steps == 5
    weights = pretrained.pretrained_weights(card)
    from bilevel_apps.runs.build import part_of
    from bilevel_apps.runs.checkpoint import load_checkpoint

    tensors = load_checkpoint(folder / "best.safetensors").tensors
    mean, last = part_of(tensors, "average.backbone"), part_of(tensors, "model.backbone")
    assert all(torch.equal(weights[name], tensor) for name, tensor in mean.items())
    assert not all(torch.equal(weights[name], tensor) for name, tensor in last.items())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": {"augment": ["crop", "flip"], "average": 0.9}, "seed": 7, "precision": "float32"},
        {"model": {"name": "c4l", "filters": 8, "norm": "episode"}, "tracking": {"every": 5}},
    ],
)
def test_the_command_leads_to_the_settings(settings):
    config = parse_config(settings, "test")
    command, *words = shlex.split(command_of(config, "tiny"))
    assert command == "bilevel-train"
    options = list(zip(words[::2], words[1::2], strict=True))
    (preset,) = (value for name, value in options if name == "--preset")
    sets = [value for name, value in options if name == "--set"]
    again = parse_config(with_settings(load_preset(preset), sets), "again").flat()
    free = {"precision", "threads", "device", "data", "episode.rotations"}
    for key, value in config.flat().items():
        if key not in free and not key.startswith("tracking."):
            assert again[key] == value, key


def test_the_command_names_a_preset_for_the_data():
    own = parse_config(load_preset("omniglot-20way-5shot"), "test")
    assert command_of(own, "omniglot") == (
        "bilevel-train --preset omniglot-20way-5shot --data omniglot.h5 "
        "--out runs/omniglot-20way-5shot"
    )
    other = command_of(own, "glyphs")
    assert other.startswith("bilevel-train --preset glyphs-5way-1shot --data glyphs.h5 --out")
    assert "--set episode.way=20" in other


@pytest.fixture
def refused(trained, tmp_path):
    """Return the line that a request is refused with; nothing may have been written."""

    def run(**changes):
        folder = changes.pop("folder", trained)
        request = PublishRequest(tag="tiny", reports=[tmp_path / "report.json"])
        with pytest.raises(InputError) as raised:
            publish_run(folder, tmp_path / "out", replace(request, **changes))
        (line,) = str(raised.value).splitlines()
        assert not (tmp_path / "out").exists()
        return line

    return run


def test_what_does_not_belong_together_is_refused(
    refused, trained, config, make_store, tmp_path, monkeypatch
):
    report = tmp_path / "report.json"
    assert f"{report}: no such file: give JSON of bilevel-eval" in refused()
    good = json.loads(scored(trained, report).read_text())
    for key, value, says in (
        ("checkpoint_sha256", "0" * 64, "is about checkpoint_sha256 000"),
        ("steps", 9, "is about steps 9, but the run has 5: evaluate it anew"),
        ("split_sha256", "0" * 64, "its episodes are not of the run's own data"),
        ("accuracy", "high", "no card can be written: accuracy: expected one or more"),
    ):
        report.write_text(json.dumps(good | {key: value}))
        assert says in refused()
    report.write_text(json.dumps({"accuracy": 1.0}))
    assert "expected a report of bilevel-eval --json" in refused()
    report.write_text("98 %")
    assert "expected JSON of bilevel-eval --json" in refused()
    scored(trained, report)
    assert "tag: expected lower-case letters, digits and hyphens" in refused(tag="Tiny")
    assert "accuracy: expected one or more" in refused(reports=[])
    other = make_store(seed=1)
    assert f"{other}: its images are not those that the run was" in refused(data=other)
    assert "no run here" in refused(folder=tmp_path)
    assert "pretrained:none: no pretrained weights 'none'" in refused(
        folder=Path("pretrained:none")
    )
    train(config(train__steps=2), tmp_path / "run", resume=False)
    assert refused(folder=tmp_path / "run").startswith(f"{report}: is about checkpoint_sha256 ")
    monkeypatch.setattr(publishing, "LARGEST", 1000)
    assert "bytes of weights, more than 1000: too large" in refused()


def test_a_tag_is_not_taken_twice(publish, trained, tmp_path):
    publish(trained)
    before = {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    with pytest.raises(InputError, match=r"tiny\.safetensors: exists already: choose another"):
        publish(trained)
    assert {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()} == before


def test_damaged_weights_cost_one_line(publish, trained, tmp_path):
    publish(trained)
    path = tmp_path / "weights" / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError) as raised:
        load_run(TAG, "cpu")
    assert str(raised.value).startswith("pretrained:tiny: tiny.safetensors: damaged")


def test_the_commands(trained, tmp_path, monkeypatch, capsys, own):
    from tools.publish import __main__ as publish

    from bilevel_apps.cli import predict

    def run(main, *words):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    report = scored(trained, tmp_path / "report.json")
    words = [trained, "--tag", "tiny", "--report", report, "--out", tmp_path / "weights"]
    status, out, _ = run(publish.main, *words)
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [
        f"wrote {tmp_path}/weights/tiny.safetensors",
        f"wrote {tmp_path}/weights/tiny.json",
    ]
    pictures = ["--support", own.support, "--query", own.query]
    status, out, err = run(predict.main, TAG, *pictures, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["checkpoint"] == "pretrained:tiny"
    status, out, err = run(predict.main, "pretrained:small", *pictures)
    assert (status, out) == (2, "")
    assert err == ("error: pretrained:small: no pretrained weights 'small': choose one of tiny\n")


def test_every_shipped_tag_stands_in_for_a_run():
    for card in list_pretrained():
        run = load_run(Path(f"pretrained:{card.tag}"), "cpu")
        assert run.image_shape == card.image_shape
        assert run.config.model.norm == card.normalization
        assert run.learner.steps == (card.steps if card.head is None else None)
