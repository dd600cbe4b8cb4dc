"""The record of a run's score: what is in it, and that it says nothing of the machine's folders."""

import json
import sys
from pathlib import Path

import pytest
from tools.results import read_records, results_page
from tools.results import score as module
from tools.results.__main__ import main
from tools.results.score import score_record

from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.paper.published import published_accuracy
from bilevel_apps.paper.trained.table3 import TASKS
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.system import machine as machines
from bilevel_apps.system.machine import machine_name, versions


def test_the_record_is_what_evaluation_says(trained, store):
    request = EvaluationRequest(data=store, episodes=5, shot=2, norm="episode", seed=3)
    record = score_record(trained, request)
    report = evaluate_run(trained, request)
    assert (record.accuracy, record.ci95) == (report.score.accuracy, report.score.ci95)
    assert (record.way, record.shot, record.query, record.episodes) == (5, 2, 3, 5)
    assert (record.norm, record.transductive, record.rotations) == ("episode", True, False)
    assert (record.hyper_iterations, record.seconds, record.upright) == (6, None, None)
    assert record.checkpoint_sha256 == load_checkpoint(trained / "best.safetensors").file_sha256
    assert "--shot 2 --norm episode" in record.evaluate
    assert "--set train.steps=6" in record.train
    assert "1 thread" in record.machine
    assert "threads" not in record.machine


def test_a_record_says_where_queries_may_be_support_images(trained, store):
    record = score_record(trained, EvaluationRequest(data=store, episodes=5, overlap=True))
    assert record.overlap
    assert " --overlap" in record.evaluate
    assert "may be support images" in results_page({"tiny.json": record})
    plain = score_record(trained, EvaluationRequest(data=store, episodes=5))
    assert not plain.overlap
    assert "--overlap" not in plain.evaluate


def test_a_record_says_where_features_are_over_shifts(trained, store):
    record = score_record(trained, EvaluationRequest(data=store, episodes=5, shifts=1))
    assert record.shifts == 1
    assert " --shifts 1" in record.evaluate
    assert "over shifts of 1 px" in results_page({"tiny.json": record})


def test_the_command_writes_a_record_that_is_read_back(trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "tiny.json"
    words = ["results", "add", str(trained), "--episodes", "4", "--machine", "an old one"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    (record,) = read_records(tmp_path).values()
    assert record.machine == "an old one"
    assert json.loads(out.read_text("utf-8"))["episodes"] == 4
    assert f"{100 * record.accuracy:.2f}" in capsys.readouterr().out


def test_weights_of_the_package_are_refused_before_they_are_scored(monkeypatch, store):
    monkeypatch.setattr(module, "evaluate_run", lambda *_: pytest.fail("scored"))
    request = EvaluationRequest(data=store, episodes=4)
    with pytest.raises(InputError, match="a record is of a training: give the folder of the run"):
        score_record(Path("pretrained:omniglot-5way-1shot"), request)


def test_the_paper_has_a_figure_for_each_of_its_tasks():
    assert published_accuracy("omniglot", "omniglot-net", 20, 1) == 95.5
    assert published_accuracy("mini-imagenet", "rn", 5, 1) == 50.54
    assert published_accuracy("mini-imagenet", "c4l", 5, 5) == 61.9
    assert published_accuracy("mini-imagenet", "resnet12", 5, 5) is None
    assert published_accuracy("glyphs", "omniglot-net", 5, 1) is None
    assert len(TASKS) == 8


def test_a_machine_has_no_name(monkeypatch, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name : A Processor\nflags : x\n")
    monkeypatch.setattr(machines, "CPUINFO", file)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert machine_name("cpu", 2).startswith("2 cores of A Processor, ")
    assert machine_name("cpu", 1).endswith(", 1 thread")
    monkeypatch.setattr(machines, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr("platform.machine", lambda: "a_kind")
    assert "2 cores of a_kind, " in machine_name()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine_name("cuda:0").startswith("cuda:0, 2 cores")
    assert versions("3.11", "2.1", "1.0") == "Python 3.11, torch 2.1, bilevel 1.0"
