"""Many runs at once, a tracker that fails, a million episodes, a million images."""

import json
import resource
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from apps.conftest import merge, source
from bilevel_apps.config import parse_config
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.tracking import tracker as tracking
from bilevel_apps.training.loop import train
from bilevel_data import (
    EpisodeSampler,
    EpisodeSpec,
    ImageSplit,
    write_store,
)
from reliability.faulty import Child
from reliability.faulty_runs import warmed_up

RUNS = 8
LONG = pytest.mark.nightly
SETTINGS = {
    "threads": 1,
    "device": "cpu",
    "episode": {"way": 5, "shot": 1, "query": 3},
    "model": {"filters": 2},
    "train": {
        "steps": 6,
        "meta_batch": 1,
        "validate_every": 3,
        "validate_episodes": 2,
        "checkpoint_every": 2,
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "tiny.h5"
    write_store(path, source())
    return path


@pytest.fixture(scope="module")
def mlflow():
    return pytest.importorskip("mlflow")


@pytest.fixture
def config(store, tmp_path):
    """Settings of a run of a second, tracked in a database of this test."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def make(**changes):
        changes = {"tracking": {"uri": uri, "every": 2}} | changes
        return parse_config(merge(SETTINGS, {"data": str(store)} | changes), "test")

    return make


def recorded(database):
    """Return (name, status, steps of the losses) of each run, read without MLflow."""
    with sqlite3.connect(database) as found:
        runs = found.execute("select run_uuid, name, status from runs").fetchall()
        query = "select step from metrics where run_uuid = ? and key = 'train/loss' order by step"
        return {
            (name, status, tuple(step for (step,) in found.execute(query, (run,))))
            for run, name, status in runs
        }


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend, nor are forks
def test_eight_runs_at_once_on_a_fresh_database(tmp_path, config, mlflow):
    """They meet when its tables are made, when the experiment is, and at every write."""
    log, chosen = tmp_path / "log", config(train__steps=20)
    warmed_up(config(), tmp_path / "warm")

    def work(name):
        tracking.FLUSH_SECONDS = 0.0
        train(chosen, tmp_path / name, resume=False)

    names = [f"run-{k}" for k in range(RUNS)]
    children = [Child(log=log, work=lambda name=name: work(name)) for name in names]
    statuses = [child.wait() for child in children]
    assert statuses == [0] * RUNS, log.read_text()
    assert "warning" not in log.read_text()
    expected = {(name, "FINISHED", tuple(range(2, 21, 2))) for name in names}
    assert recorded(tmp_path / "mlflow.db") == expected
    weights = {(tmp_path / name / "last.safetensors").read_bytes() for name in names}
    assert len(weights) == 1  # they are the same run


@pytest.mark.nightly
def test_eight_commands_at_once_on_a_fresh_database(tmp_path, config, mlflow):
    """The same with the real commands."""
    from bilevel_apps.config import dump_config

    (tmp_path / "run.yaml").write_text(dump_config(config()))
    words = [sys.executable, "-m", "bilevel_apps.cli.train", str(tmp_path / "run.yaml")]
    names = [f"run-{k}" for k in range(RUNS)]
    processes = [
        subprocess.Popen(
            [*words, "--out", str(tmp_path / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert "warning" not in err
    expected = {(name, "FINISHED", (2, 4, 6)) for name in names}
    assert recorded(tmp_path / "mlflow.db") == expected


def answers_nothing(tmp_path):
    """A server that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    return f"http://127.0.0.1:{server.getsockname()[1]}", server.close


def is_down(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}", lambda: None


def is_locked(tmp_path):
    """A database that another program writes to, and does not let go."""
    tracking.mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    other.execute("begin exclusive")
    return f"sqlite:///{tmp_path}/mlflow.db", other.close


def is_full(tmp_path):
    """A database that cannot grow: the limit is on the size of files, and checkpoints are small."""
    tracking.mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db", limited(60_000)


def limited(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


TROUBLES = {"down": is_down, "mute": answers_nothing, "locked": is_locked, "full": is_full}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "trouble", ["mute", "full", *(pytest.param(name, marks=LONG) for name in ("down", "locked"))]
)
def test_a_tracker_in_trouble_costs_one_warning(
    tmp_path, config, mlflow, capsys, monkeypatch, trouble
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    began = time.monotonic()
    uri, end = TROUBLES[trouble](tmp_path)
    try:
        train(config(tracking={"uri": uri}), tmp_path / "run", resume=False)
    finally:
        end()
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").record["step"] == 6
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith(f"warning: no tracking at {uri}, training goes on without it (")
    print(f"{trouble}: {time.monotonic() - began:.1f} s, {warning}")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("trouble", ["locked", "full"])
def test_a_tracker_that_comes_into_trouble_costs_one_warning(
    tmp_path, config, mlflow, capsys, monkeypatch, trouble
):
    """After the run has begun, and for good."""
    ends = []
    begin = tracking.Tracker.metrics

    def metrics(tracker, step, values):
        if not ends:
            if trouble == "locked":
                other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
                other.execute("begin exclusive")
                ends.append(other.close)
            else:
                ends.append(limited(60_000))
        begin(tracker, step, values)

    monkeypatch.setattr(tracking.Tracker, "metrics", metrics)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    try:
        train(config(), tmp_path / "run", resume=False)
    finally:
        ends[0]()
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").record["step"] == 6
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith("warning: tracking stopped, training goes on (")


SPLITS = {"train": 40, "val": 20, "test": 30}
PER_CLASS = 20


def numbered(name):
    """A split whose pixels say the split, the class, and the image's number within it."""
    classes, base = SPLITS[name], 64 * list(SPLITS).index(name)
    images = np.zeros((classes, PER_CLASS, 2, 2, 1), dtype=np.uint8)
    images[..., 0, 0, 0] = base + np.arange(classes)[:, None]
    images[..., 0, 1, 0] = np.arange(PER_CLASS)
    return ImageSplit(
        name=name,
        images=images.reshape(-1, 2, 2, 1),
        offsets=np.arange(classes + 1, dtype=np.int64) * PER_CLASS,
        class_names=tuple(f"{name}-{c}" for c in range(classes)),
        sha256="0" * 64,
    )


def resident():
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("episodes", [12_000, pytest.param(1_002_000, marks=LONG)])
def test_episodes_without_end(episodes):
    """Support and query share no image, no split sees another's class, and none is preferred."""
    spec, batch = EpisodeSpec(way=5, shot=1, query=3), 500
    began, memory = time.monotonic(), 0
    for name, base in zip(SPLITS, (0, 64, 128), strict=True):
        sampler = EpisodeSampler(numbered(name), spec, seed=11)
        classes = np.zeros(SPLITS[name], dtype=np.int64)
        places = np.zeros((5, SPLITS[name]), dtype=np.int64)
        within = {part: np.zeros(PER_CLASS, dtype=np.int64) for part in ("support", "query")}
        for first in range(0, episodes // len(SPLITS), batch):
            drawn = sampler.batch(first, batch)
            kind = drawn.support[..., 0, 0, 0].astype(np.int64) - base  # (batch, way)
            asked = drawn.query[..., 0, 0, 0].reshape(batch, 5, 3) - np.uint8(base)
            assert ((kind >= 0) & (kind < SPLITS[name])).all()
            assert (asked == kind[..., None]).all()
            assert (np.diff(np.sort(kind, axis=1), axis=1) > 0).all()  # five classes, not fewer
            support = drawn.support[..., 0, 1, 0].reshape(batch, 5, 1)
            query = drawn.query[..., 0, 1, 0].reshape(batch, 5, 3)
            images = np.sort(np.concatenate([support, query], axis=2), axis=2)
            assert (np.diff(images, axis=2) > 0).all()  # four images of a class, not fewer
            classes += np.bincount(kind.ravel(), minlength=len(classes))
            for place in range(5):
                places[place] += np.bincount(kind[:, place], minlength=len(classes))
            for part, found in (("support", support), ("query", query)):
                within[part] += np.bincount(found.ravel(), minlength=PER_CLASS)
            if first == 5 * batch and not memory:
                memory = resident()
        assert_uniform(classes, spread=1 - 4 / (SPLITS[name] - 1))
        for place in places:
            assert_uniform(place)
        assert_uniform(within["support"])
        assert_uniform(within["query"], spread=1 - 2 / (PER_CLASS - 1))
    grown = resident() - memory
    seconds = time.monotonic() - began
    print(f"{episodes} episodes in {seconds:.1f} s, memory grown by {grown / 2**20:.1f} MiB")
    assert grown < 8 << 20


def assert_uniform(counts, spread=1.0):
    """Pearson's statistic; `spread` is the variance of a count over that of independent draws.

    Draws without replacement within an episode vary less. With k degrees of freedom the statistic
    exceeds k + 4√(2k) + 11 about once in 10,000 times (Laurent & Massart 2000, lemma 1).
    """
    expected = counts.sum() / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum() / spread
    free, surprise = len(counts) - 1, np.log(10_000)
    assert statistic < free + 2 * np.sqrt(free * surprise) + 2 * surprise


BUILD = """
import json, sys, time
sys.path[:0] = json.loads(sys.argv[4])
from pathlib import Path
import numpy as np
from bilevel_data import Lazy, SourceData, SourceSplit, open_store, verify_store, write_store

path, classes, job = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
EACH, SIZE = 1000, 12

def images(first, count):
    for c in range(first, first + count):
        yield np.random.default_rng(c).integers(0, 256, (EACH, SIZE, SIZE, 1), dtype=np.uint8)

def split(name, first, count):
    return SourceSplit(
        name=name,
        class_names=tuple(f"class-{c}" for c in range(first, first + count)),
        class_sizes=(EACH,) * count,
        image_shape=(SIZE, SIZE, 1),
        images=Lazy(make=lambda: images(first, count)),
    )

def peak():  # not of getrusage, which remembers the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

small = Path(f"{path}.{job}")
def store(path, classes):
    half = classes // 2
    write_store(path, SourceData(name="many", licence="CC0", source="a test", preprocessing="none",
        rotations_are_classes=False, splits=(split("train", 0, half), split("test", half, half))))

store(small, 4)
verify_store(small)
before, began = peak(), time.monotonic()
if job == "build":
    store(path, classes)
elif job == "verify":
    verify_store(path)
else:
    train = open_store(path).load("train")
    for c in (0, classes // 2 - 1):
        assert (train.images[c * EACH : (c + 1) * EACH] == next(images(c, 1))).all()
print(json.dumps({"grown": peak() - before, "seconds": time.monotonic() - began}))
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("classes", [20, pytest.param(1000, marks=LONG)])
def test_a_store_of_many_images(tmp_path, classes):
    """Building holds a class, and reading a split, in memory."""
    path = tmp_path / "many.h5"
    pixels = classes * 1000 * 12 * 12

    def grown(job):
        words = [sys.executable, "-c", BUILD, path, classes, job, json.dumps(sys.path)]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        mib = found["grown"] / 2**20
        print(f"{job}: {classes * 1000:,} images, {found['seconds']:.1f} s, {mib:.0f} MiB more")
        return found["grown"]

    assert grown("build") < 16 << 20
    size = path.stat().st_size
    print(f"{size / 2**20:.0f} MiB on the disk, of which pixels {pixels / 2**20:.0f} MiB")
    assert pixels < size < 1.1 * pixels + (1 << 20)
    for job in ("read", "verify"):
        assert grown(job) < 1.2 * pixels / 2 + (16 << 20)
    path.unlink()
