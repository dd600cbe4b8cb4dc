"""The same seed and threads give the same bits, and what they depend on stands in the record."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from apps.conftest import merge, source
from bilevel_apps.config import parse_config
from bilevel_apps.runs.checkpoint import load_checkpoint, save_checkpoint
from bilevel_apps.training import loop as module
from bilevel_apps.training.loop import train
from bilevel_data import EpisodeLoader, open_store, write_store

SETTINGS = {
    "seed": 7,
    "threads": 1,
    "device": "cpu",
    "episode": {"way": 5, "shot": 1, "query": 3},
    "model": {"filters": 4},
    "train": {
        "steps": 4,
        "meta_batch": 2,
        "augment": ["shift", "flip", "colour"],
        "validate_every": 2,
        "validate_episodes": 4,
        "checkpoint_every": 2,
    },
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("determinism") / "tiny.h5"
    write_store(path, source())
    return SETTINGS | {"data": str(path)}


@pytest.fixture(scope="module")
def once(tmp_path_factory, settings):
    """The folder of a run; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "once"
    train(parse_config(settings, "test"), folder, resume=False)
    return folder


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits(folder):
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("last", "best")}


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetching_does_not_matter(tmp_path, settings, once, monkeypatch, prefetch):
    monkeypatch.setattr(module, "EpisodeLoader", partial(EpisodeLoader, prefetch=prefetch))
    train(parse_config(settings, "test"), tmp_path / "run", resume=False)
    assert bits(tmp_path / "run") == bits(once)


@pytest.mark.parametrize("prefetch", [0, 5])
def test_a_resume_with_other_prefetching_does_not_matter(
    tmp_path, settings, once, monkeypatch, prefetch
):
    folder = tmp_path / "run"
    iterate = module._hyper_iteration

    class KilledError(BaseException):
        pass

    def cut(training, batch):
        if training.step == 3:
            raise KilledError
        return iterate(training, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_hyper_iteration", cut)
        with pytest.raises(KilledError):
            train(parse_config(settings, "test"), folder, resume=False)
    assert load_checkpoint(folder / "last.safetensors").record["step"] == 2
    monkeypatch.setattr(module, "EpisodeLoader", partial(EpisodeLoader, prefetch=prefetch))
    train(parse_config(settings, "test"), folder, resume=True)
    assert bits(folder) == bits(once)


@pytest.mark.process
def test_other_processes_come_to_the_same_bits(tmp_path, settings, once):
    """With other hashes of strings, another folder, another locale and other random states."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    environment = os.environ | {"PYTHONHASHSEED": "12345", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    shaken = "import numpy, random, torch; numpy.random.rand(); random.random(); torch.rand(1)"
    command = f"{shaken}; from bilevel_apps.cli.train import main; main()"
    words = [sys.executable, "-c", command, "run.yaml", "--out", "elsewhere"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert bits(tmp_path / "elsewhere") == bits(once)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3])
def test_at_any_fixed_number_of_threads(tmp_path, settings, threads):
    chosen = parse_config(settings | {"threads": threads}, "test")
    for name in ("a", "b"):
        train(chosen, tmp_path / name, resume=False)
        assert torch.get_num_threads() == threads
    assert bits(tmp_path / "a") == bits(tmp_path / "b")


@pytest.mark.process
def test_a_store_built_in_another_process_has_the_same_bits(tmp_path, settings):
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]; from apps.conftest import source; "
        "from bilevel_data import write_store; write_store(sys.argv[1], source())"
    )
    path = tmp_path / "tiny.h5"
    words = [sys.executable, "-c", program, str(path), *sys.path]
    environment = os.environ | {"PYTHONHASHSEED": "999", "TZ": "Asia/Tokyo"}
    subprocess.run(words, check=True, env=environment)
    assert path.read_bytes() == Path(settings["data"]).read_bytes()


def test_the_record_holds_what_the_bits_depend_on(settings, once):
    record = load_checkpoint(once / "last.safetensors").record
    assert record["config"]["seed"] == 7
    found = record["environment"]
    hashes = {k: v.sha256 for k, v in open_store(settings["data"]).manifest.splits.items()}
    assert found["data"] == hashes
    assert (found["threads"], found["device"], found["processes"]) == (1, "cpu", 1)
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["bilevel"]


OTHERS = {
    "threads": (64, "threads 64 → 1"),
    "device": ("cuda:0", "device cuda:0 → cpu"),
    "processes": (4, "processes 4 → 1"),
    "python": ("3.10.1", f"python 3.10.1 → {platform.python_version()}"),
    "torch": ("2.0.0", f"torch 2.0.0 → {torch.__version__}"),
    "bilevel": ("0.0.1", "bilevel 0.0.1 → "),
}


@pytest.mark.parametrize("key", OTHERS)
def test_a_resume_under_others_says_that_it_will_not_be_exact(
    tmp_path, settings, once, capsys, key
):
    value, says = OTHERS[key]
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "best.safetensors"):
        (tmp_path / "run" / name).write_bytes((once / name).read_bytes())
    before = load_checkpoint(once / "last.safetensors")
    changed = merge(before.record, {f"environment__{key}": value})
    save_checkpoint(tmp_path / "run" / "last.safetensors", replace(before, record=changed))
    capsys.readouterr()
    train(parse_config(settings, "test"), tmp_path / "run", resume=True)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith(f"warning: resuming with {says}")
    assert warning.endswith("the result will not be the same to the last bit")


def test_a_resume_under_the_same_says_nothing(tmp_path, settings, once, capsys):
    for path in once.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    capsys.readouterr()
    train(parse_config(settings, "test"), tmp_path, resume=True)
    assert "warning" not in capsys.readouterr().err
    assert bits(tmp_path) == bits(once)
