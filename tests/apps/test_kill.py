"""SIGKILL at any moment, and --resume comes to the same bits."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bilevel_apps.train import train

pytestmark = pytest.mark.slow

KILLS = 10
STEPS = 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config):
    """The checkpoints of an undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(config(**changes()), folder, resume=False)
    return checkpoints(folder)


def changes():
    return {"train__steps": STEPS, "train__checkpoint_every": 2, "train__validate_every": 5}


def checkpoints(folder):
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("last", "best")}


def step_of(folder):
    """How far a run has come, read from the file itself."""
    try:
        header = (folder / "last.safetensors").read_bytes()[:100_000]
    except FileNotFoundError:
        return 0
    return int(re.search(rb"step\W+(\d+)", header.replace(b"best_step", b"")).group(1))


class Process:
    """The real command."""

    def __init__(self, arguments):
        words = [sys.executable, "-m", "bilevel_apps.cli.train", *map(str, arguments)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.began = time.monotonic()

    def wait_for_change(self, path: Path):
        """Return when a training writes: its start-up takes most of the time otherwise."""
        before = stamp(path)
        while self.process.poll() is None and stamp(path) == before:
            time.sleep(0.001)

    def kill(self):
        """Return whether it was still alive."""
        alive = self.process.poll() is None
        self.process.send_signal(signal.SIGKILL)
        _, err = self.process.communicate(timeout=60)
        assert b"error:" not in err, err.decode()
        assert not alive or self.process.returncode == -signal.SIGKILL
        return alive

    def finish(self):
        _, err = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, err.decode()
        return err.decode()


def stamp(path):
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def arguments(tmp_path, settings, folder, **more):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(**changes(), **more)))
    return [file, "--out", folder, "--resume"]


def test_killed_again_and_again(tmp_path, settings, whole):
    folder = tmp_path / "killed"
    words = arguments(tmp_path, settings, folder)
    rng = random.Random(0)
    killed, progress = 0, []
    # A third while it starts, the others at any point between two checkpoints and within one.
    for round_ in range(KILLS + 2):
        process = Process(words)
        if round_ % 3 == 0:
            time.sleep(rng.uniform(0.0, 1.0))  # start-up takes longer anywhere
        else:
            process.wait_for_change(folder / "last.safetensors")
            time.sleep(rng.uniform(0.0, 0.1))
        killed += process.kill()
        progress.append(step_of(folder))
    assert killed >= KILLS
    assert progress == sorted(progress)  # no kill ever costs a checkpoint
    assert 0 < progress[-1] < STEPS
    assert len(set(progress)) > 3
    Process(words).finish()
    assert checkpoints(folder) == whole
    assert not list(folder.glob("*.tmp"))
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend
def test_killed_while_tracked(tmp_path, settings, whole):
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path / "tracked"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = arguments(tmp_path, settings, folder, tracking={"uri": uri, "every": 2})
    rng = random.Random(1)
    killed = 0
    for _ in range(2):
        process = Process(words)
        process.wait_for_change(folder / "last.safetensors")
        time.sleep(rng.uniform(0.0, 0.1))
        killed += process.kill()
    assert killed == 2
    err = Process(words).finish()
    assert "warning" not in err
    client = mlflow.MlflowClient(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val/best_accuracy"] > 0
    found = checkpoints(folder)
    assert found.keys() == whole.keys()
    assert all(_tensors(found[k]) == _tensors(whole[k]) for k in whole)


def _tensors(content):
    """What follows the header, which holds the configuration."""
    return content[8 + int.from_bytes(content[:8], "little") :]
