"""The one command for a GPU: its commands are ones that the tools take, and none is run without."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from tools.results import __main__ as results

from bilevel_apps.cli import train
from bilevel_apps.config import load_preset, parse_config, with_settings

ROOT = Path(__file__).parents[1]
OUT, STORE = Path("out"), Path("mini.h5")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def parsed(app, words):
    """Return what a command line makes of its words, without running it."""
    command = typer.main.get_command(app)
    name, *rest = words
    one = getattr(command, "commands", {}).get(name)
    return (
        one.make_context(name, rest).params if one else command.make_context("", list(words)).params
    )


def test_measurements_are_of_both_precisions_and_each_script_takes_its_options(
    benchmark, monkeypatch
):
    steps = benchmark("gpu").measurements(OUT, [STORE])
    assert {step.name for step in steps} == {
        "gradients",
        *(
            f"{name}-{p}"
            for name in ("hyperiteration", "evaluation")
            for p in ("float32", "bfloat16")
        ),
    }
    for step in steps:
        script, *options = step.words
        assert Path(script).exists()
        monkeypatch.setattr(sys, "argv", [script, *options])
        module = benchmark(Path(script).stem)
        found = module.parse()
        assert found.device == "cuda"
        assert found.json == OUT / f"{step.name}.json"


@pytest.mark.parametrize("name", ["c4l", "resnet12"])
def test_trainings_fill_the_time_that_is_left(benchmark, name):
    train_step, score_step = benchmark("gpu").training(name, OUT, STORE, 100)
    assert train_step.words[:2] == ("-m", "bilevel_apps.cli.train")
    found = parsed(train.app, train_step.words[2:])
    assert (found["device"], found["out"], found["data"]) == ("cuda", OUT / name, [str(STORE)])
    config = parse_config(with_settings(load_preset(found["preset"]), found["assignments"]), "it")
    assert config.model.name == name
    assert config.train.minutes == pytest.approx(1)  # 40 s are for what is around it
    assert score_step.words[:2] == ("-m", "tools.results")
    scored = parsed(results.app, score_step.words[2:])
    assert (scored["folder"], scored["split"], scored["device"]) == (OUT / name, "val", "cuda")


def test_all_of_it_is_within_ten_minutes(benchmark):
    gpu = benchmark("gpu")
    measured = sum(step.seconds for step in gpu.measurements(OUT, []))
    assert measured + len(gpu.TRAININGS) * (2 * gpu.OVERHEAD) < gpu.BUDGET < 600


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_is_refused_in_a_line(tmp_path):
    out = tmp_path / "gpu"
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no CUDA device")
    assert not out.exists()
