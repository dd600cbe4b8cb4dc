"""A run as a torch.export program: the run's own answers, checked before anything is written."""

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch

from bilevel_apps.predict import export
from bilevel_apps.predict.classifier import FewShotClassifier
from bilevel_apps.predict.export import CARD, FewShotProgram, export_run
from bilevel_apps.runs.build import make_learner
from bilevel_data import open_store
from bilevel_meta.adapt import learner_of

SHAPE = (16, 16, 1)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run bilevel-export in this process; returns its status, stdout and stderr."""
    from bilevel_apps.cli.export import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bilevel-export", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("norm", ["ghost", "batch", "support", "episode"])
def test_the_programs_form_is_that_of_the_heads(config, norm):
    task = make_learner(config(model__norm=norm, inner__steps=9), SHAPE, torch.device("cpu"))
    learner = learner_of(task)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(17, 1, 16, 16, generator=generator)
    support, query, labels = images[:7], images[7:], torch.tensor([0, 1, 1, 2, 2, 2, 2])
    with torch.no_grad():
        found = FewShotProgram(learner, 3)(support, labels, query)
    expected = learner.adapt(support, labels, 3).probabilities(query)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert expected.std() > 0.1


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory, config):
    """A run of running averages, and one of the support set's statistics."""
    from bilevel_apps.training.loop import train

    folder = tmp_path_factory.mktemp("runs") / "support"
    train(config(model__norm="support", train__steps=2), folder, resume=False)
    return {"ghost": trained, "support": folder}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["ghost", "support"])
def test_the_file_gives_the_runs_answers(runs, norm, store, tmp_path):
    out = tmp_path / "new" / "program.pt2"
    found = export_run(runs[norm], out, way=3)
    assert (found.path, found.way) == (out, 3)
    assert found.difference <= 1e-5
    assert [entry.name for entry in out.parent.iterdir()] == ["program.pt2"]
    files = {CARD: ""}
    program = torch.export.load(out, extra_files=files).module()
    assert json.loads(files[CARD])["way"] == 3
    images = open_store(store).load("test").images.reshape(6, 20, *SHAPE)
    # Any number of support images, of another for each class, and of queries.
    for counts, queries in (((1, 1, 1), 1), ((3, 1, 2), 4), ((9, 9, 9), 7)):
        X = np.concatenate([images[c, :n] for c, n in enumerate(counts)])
        y = np.repeat([0, 1, 2], counts)
        query = images[:3, 10 : 10 + queries].reshape(-1, *SHAPE)[:queries]
        s, q = (torch.from_numpy(x / 255).float().movedim(-1, -3) for x in (X, query))
        expected = FewShotClassifier(runs[norm]).fit(X, y).predict_proba(query)
        with torch.no_grad():
            answer = program(s, torch.from_numpy(y), q).numpy()
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
    # The weights are plain bytes and the examples are left out: there is no pickle in the file.
    with zipfile.ZipFile(out) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    (example,) = (contents[name] for name in contents if "sample_inputs" in name)
    assert example == b""
    (weights,) = (contents[name] for name in contents if name.endswith("weights_config.json"))
    kinds = {entry["use_pickle"] for entry in json.loads(weights)["config"].values()}
    assert kinds == {False}


@pytest.mark.slow
def test_nothing_is_written_where_the_answers_differ(command, trained, tmp_path, monkeypatch):
    before = export._difference
    monkeypatch.setattr(export, "_difference", lambda *words: before(*words) + 2e-5)
    status, out, err = command(trained, "--out", tmp_path / "program.pt2")
    assert (status, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'program.pt2'}: not written: ")
    assert "2e-05, more than 1e-05" in line
    assert list(tmp_path.iterdir()) == []


def test_places_and_runs_that_cannot_be_used(command, trained, tmp_path):
    taken = tmp_path / "taken.pt2"
    taken.write_text("kept")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 99)
    shutil.copytree(trained, tmp_path / "run")
    for name in ("best", "last"):
        (tmp_path / "run" / f"{name}.safetensors").unlink()
    good = tmp_path / "program.pt2"
    for run, out, says in [
        (trained, tmp_path / "program.pth", "expected a name that ends in .pt2 or .onnx"),
        (trained, taken, "exists already: choose another name"),
        (trained, taken / "program.pt2", "is not a folder"),
        (trained, tmp_path / f"{'x' * 300}.pt2", "File name too long"),
        (tmp_path / "empty", good, "no run here"),
        (tmp_path / "missing", good, "no run here"),
        (tmp_path / "run", good, "no checkpoint yet"),
        (tmp_path / "broken.safetensors", good, "damaged or not a checkpoint"),
    ]:
        status, printed, err = command(run, "--out", out)
        assert (status, printed) == (2, "")
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert says in line
    assert taken.read_text() == "kept"
    assert not good.exists()
    assert "'--way'" in command(trained, "--out", good, "--way", 1)[2]


def test_help_names_the_options(command):
    status, out, err = command("--help")
    assert (status, err) == (0, "")
    for word in ("DIR", "--out", "--way", "--debug", "torch.export.load may unpickle"):
        assert word in out


def test_onnx_gives_the_runs_answers_in_onnxruntime(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "program.onnx"
    found = export_run(trained, out, way=3)
    assert (found.path, found.way) == (out, 3)
    assert found.difference <= 1e-5
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    X, query = (rng.integers(0, 256, (n, 16, 16, 1), dtype=np.uint8) for n in (7, 4))
    labels = np.array([0, 0, 0, 0, 1, 1, 2])

    def images(pixels):
        return (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)

    given = {"support": images(X), "labels": labels, "query": images(query)}
    (probabilities,) = session.run(None, given)
    expected = FewShotClassifier(trained).fit(X, labels).predict_proba(query)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    card = json.loads(session.get_modelmeta().custom_metadata_map[CARD])
    assert card["way"] == 3
    assert card["preprocessing"]["size"] == [16, 16]


def test_a_program_says_how_pictures_are_prepared_and_no_place(trained, tmp_path, store):
    out = tmp_path / "program.pt2"
    export_run(trained, out)
    with zipfile.ZipFile(out) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(CARD)]
        text = archive.read(name).decode()
    card = json.loads(text)
    assert card["preprocessing"] == open_store(store).manifest.preprocessing.as_dict()
    assert set(card["head"]) >= {"steps", "step_size"}
    assert str(store.parent) not in text
    assert "tracking" not in card["config"]
