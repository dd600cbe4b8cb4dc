"""SIGKILL at moments that have a name, and a disk that becomes full; --resume goes on.

`tests/reliability/test_kills.py` kills at random moments, with a tracker.
"""

import json
import re
import resource
import subprocess
import sys
import time

import pytest
import yaml

from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.training.loop import train

pytestmark = pytest.mark.process

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


# Each round forks a process that has imported everything, which takes seconds, trains on, and kills
# itself at some occurrence of the moment that is its turn.
ROUNDS = """
import json, os, random, signal, sys
from pathlib import Path
from bilevel_apps.config import parse_config
from bilevel_apps.runs import checkpoint
from bilevel_apps.scoring import feature_table
from bilevel_apps.training import loop as module

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
    "after a validation": lambda: around(module, "score_learner", after=die),
    "half-way through a checkpoint": half_way,
    "before a checkpoint has its name": lambda: around(checkpoint, "commit", before=die),
    "after a checkpoint has its name": lambda: around(checkpoint, "commit", after=die),
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


def test_a_full_disk_leaves_the_last_good_checkpoint_and_one_line(
    tmp_path, settings, config, whole
):
    """A limit on the size of files, set while the command trains, fails as a full disk does."""
    folder, file = tmp_path / "full", tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(**changes())))
    words = [sys.executable, "-m", "bilevel_apps.cli.train", file, "--out", folder, "--resume"]
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (folder / "last.safetensors").exists():
        time.sleep(0.001)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, hard))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    (line,) = (line for line in err.splitlines() if "rror" in line)
    assert re.fullmatch(
        rf"error: {folder}/(last|best)\.safetensors: cannot write the checkpoint \(.*too large\)",
        line,
    )
    assert line == err.splitlines()[-1]
    assert {p.name for p in folder.iterdir()} - {".lock"} <= {
        "config.yaml",
        "last.safetensors",
        "best.safetensors",
    }
    assert 0 < load_checkpoint(folder / "last.safetensors").record["step"] < STEPS
    train(config(**changes()), folder, resume=True)
    assert checkpoints(folder) == whole
