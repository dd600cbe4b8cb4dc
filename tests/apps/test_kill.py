"""SIGKILL at any moment, and --resume comes to the same bits."""

import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bilevel_apps.checkpoint import load_checkpoint
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


# Each round forks a process that has imported everything, which takes seconds, trains on, and kills
# itself at some occurrence of the moment that is its turn.
ROUNDS = """
import json, os, random, signal, sys
from pathlib import Path
from bilevel_apps import checkpoint, feature_table, train as module
from bilevel_apps.config import parse_config

settings, folder, rounds = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
rng = random.Random(0)
left = 0

def die(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def around(owner, name, before=None, after=None):
    whole = getattr(owner, name)
    def wrapped(*arguments, **options):
        if before: before(*arguments)
        result = whole(*arguments, **options)
        if after: after(*arguments)
        return result
    setattr(owner, name, wrapped)

def half_way():
    def write(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            die()
            file.write(content[len(content) // 2 :])
    Path.write_bytes = write

MOMENTS = {
    "before a hyper-iteration": lambda: around(module, "_hyper_iteration", before=die),
    "before the step": lambda: around(module, "clipped_norm", before=die),
    "after the step": lambda: around(module, "_hyper_iteration", after=die),
    "in a validation": lambda: around(feature_table, "_encoded", after=die),
    "after a validation": lambda: around(module, "score_task", after=die),
    "half-way through a checkpoint": half_way,
    "before a checkpoint has its name": lambda: around(checkpoint, "publish", before=die),
    "after a checkpoint has its name": lambda: around(checkpoint, "publish", after=die),
}

def run(folder, **train):
    chosen = settings | {"train": settings["train"] | train}
    module.train(parse_config(chosen, "test"), folder, resume=True)

run(folder.with_name("imports"), steps=1)
for number in range(rounds):
    moment = list(MOMENTS)[number % len(MOMENTS)]
    left = rng.randint(1, 3)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        MOMENTS[moment]()
        run(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(moment if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else "lived")
"""


def test_killed_at_every_moment_with_every_option(tmp_path, settings, config):
    chosen = changes() | {
        "train__steps": 120,
        "train__meta_batch": 4,
        "train__optimizer": "sgd",
        "train__schedule": "cosine",
        "train__accumulate": 2,
        "train__clip": 0.1,
        "train__average": 0.9,
        "train__label_smoothing": 0.1,
        "train__augment": ["shift", "flip", "colour"],
        "train__patience": 1000,
        "train__validate_episodes": 40,  # in two batches
    }
    train(config(**chosen), tmp_path / "whole", resume=False)
    folder, rounds = tmp_path / "killed", 24
    words = [sys.executable, "-c", ROUNDS, json.dumps(settings(**chosen)), folder, rounds]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    moments = done.stdout.splitlines()
    assert len(moments) == rounds
    assert "lived" not in moments
    assert all(moments.count(moment) == 3 for moment in moments)
    assert 20 < step_of(folder) < 120
    train(config(**chosen), folder, resume=True)
    assert checkpoints(folder) == checkpoints(tmp_path / "whole")
    assert not list(folder.glob(".*.tmp"))


def test_a_full_disk_leaves_the_last_good_checkpoint_and_one_line(tmp_path, settings, whole):
    """A limit on the size of files, set while the command trains, fails as a full disk does."""
    folder = tmp_path / "full"
    words = arguments(tmp_path, settings, folder)
    process = Process(words)
    process.wait_for_change(folder / "last.safetensors")
    number = process.process.pid
    _, hard = resource.prlimit(number, resource.RLIMIT_FSIZE)
    resource.prlimit(number, resource.RLIMIT_FSIZE, (1000, hard))
    out, err = process.process.communicate(timeout=60)
    assert process.process.returncode == 1
    assert out == b""
    (line,) = (line for line in err.decode().splitlines() if "rror" in line)
    assert re.fullmatch(
        rf"error: {folder}/(last|best)\.safetensors: cannot write the checkpoint \(.*too large\)",
        line,
    )
    assert line == err.decode().splitlines()[-1]
    assert {p.name for p in folder.iterdir()} - {".lock"} <= {
        "config.yaml",
        "last.safetensors",
        "best.safetensors",
    }
    assert 0 < load_checkpoint(folder / "last.safetensors").record["step"] < STEPS
    Process(words).finish()
    assert checkpoints(folder) == whole


@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend
def test_killed_while_tracked(tmp_path, settings, config, whole):
    """The weights are the same, and so is what the tracker was told."""
    mlflow = pytest.importorskip("mlflow")

    def tracking(name):
        return {"uri": f"sqlite:///{tmp_path}/{name}.db", "every": 3}

    train(config(**changes(), tracking=tracking("whole")), tmp_path / "whole", resume=False)
    folder = tmp_path / "tracked"
    words = arguments(tmp_path, settings, folder, tracking=tracking("killed"))
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
    run, history = recorded(mlflow.MlflowClient(tracking("killed")["uri"]))
    _, expected = recorded(mlflow.MlflowClient(tracking("whole")["uri"]))
    assert run.info.status == "FINISHED"
    assert run.data.tags["ended"] == "steps"
    assert run.data.metrics["val/best_accuracy"] > 0
    assert {"train/loss", "val/accuracy", "outer/grad_norm"} <= history.keys()
    assert history == expected
    found = checkpoints(folder)
    assert found.keys() == whole.keys()
    assert all(_tensors(found[k]) == _tensors(whole[k]) for k in whole)


def recorded(client):
    """Return the one run of a database, and its metrics but for speeds as sets of (step, value)."""
    (experiment,) = (e for e in client.search_experiments() if e.name == "tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    names = [name for name in run.data.metrics if not name.startswith("speed/")]
    return run, {
        name: {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)}
        for name in names
    }


def _tensors(content):
    """What follows the header, which holds the configuration."""
    return content[8 + int.from_bytes(content[:8], "little") :]
