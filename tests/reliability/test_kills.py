"""SIGKILL at any moment leaves whole files, and the work then comes to the same bits.

Beside `tests/apps/test_kill.py`, which kills at moments that it names, these moments are random.
The short form kills 8 times, the nightly one 100 times.
"""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from apps.conftest import merge, source
from bilevel_apps.cli import train as command
from bilevel_apps.config import load_config, parse_config
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.tracking import tracker as tracking
from bilevel_apps.training.loop import train
from bilevel_data import open_store, verify_store, write_store
from reliability.faulty import Child
from reliability.faulty_runs import warmed_up

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("default"),  # MLflow's own are not ours to mend, nor are forks
]

KILLS = pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.nightly)])
SECONDS_TO_STOP = 5.0

SETTINGS = {
    "threads": 1,
    "device": "cpu",
    "episode": {"way": 5, "shot": 1, "query": 3},
    "model": {"filters": 4},
    "train": {
        "steps": 40,
        "meta_batch": 2,
        "validate_every": 5,
        "validate_episodes": 10,
        "checkpoint_every": 2,
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("kills") / "tiny.h5"
    write_store(path, source())
    return path


@dataclass
class Run:
    """A tracked training in a folder, and what it leaves when nothing disturbs it."""

    folder: Path
    config: object
    seconds: float = 0.0
    tables: bytes = b""
    expected: dict = field(default_factory=dict)
    history: dict = field(default_factory=dict)

    @property
    def database(self):
        return self.folder.with_name("mlflow.db")

    @property
    def log(self):
        return self.folder.with_name("log")

    @property
    def last(self):
        return self.folder / "last.safetensors"

    def child(self):
        """Begin the real command, or go on with it, in a process of its own."""
        file = self.folder.with_name("run.yaml")
        file.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))

        def work():
            tracking.FLUSH_SECONDS = 0.0  # write as often as can be
            sys.argv = ["bilevel-train", str(file), "--out", str(self.folder), "--resume"]
            command.main()

        return Child(log=self.log, work=work)

    def wait_for_checkpoints(self, child, count=1):
        """Return when the process has saved so often, or has ended: its start takes the longest."""
        for _ in range(count):
            before = stamp(self.last)
            while child.alive() and stamp(self.last) == before:
                time.sleep(0.001)

    def clear(self):
        for path in (self.folder, self.folder.with_name("mlartifacts")):
            shutil.rmtree(path, ignore_errors=True)
        self.database.write_bytes(self.tables)  # making it anew takes seconds
        self.log.write_text("")

    def check(self):
        """What a killed run leaves under real names is whole; returns how far it came."""
        step = 0
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path.name == "config.yaml":
                parse_config(load_config(path), "config.yaml")
            elif path.name == "tracking.json":
                assert json.loads(path.read_text()).keys() == {"uri", "run_id"}
            elif path.suffix == ".safetensors":
                found = load_checkpoint(path).record["step"]
                step = found if path.stem == "last" else step
            else:
                assert re.fullmatch(r"\.lock|\..*\.tmp", path.name)
        if self.database.exists():
            with sqlite3.connect(self.database) as database:
                assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert "rror" not in self.log.read_text()
        assert "warning" not in self.log.read_text()
        return step

    def check_end(self):
        """It came to the same bits, and told the tracker the same."""
        self.check()
        assert checkpoints(self.folder) == self.expected
        assert not list(self.folder.glob(".*.tmp"))
        (copy,) = self.folder.with_name("mlartifacts").rglob("best.safetensors")
        assert copy.read_bytes() == self.expected["best"]
        assert self.recorded() == self.history

    def recorded(self):
        """Return the metrics, but for speeds, of the one run, which has ended; without MLflow."""
        run = (json.loads((self.folder / "tracking.json").read_text())["run_id"],)
        with sqlite3.connect(self.database) as database:
            tiny = database.execute(
                "select run_uuid, status from runs join experiments using (experiment_id) "
                "where experiments.name = 'tiny'"
            )
            assert tiny.fetchall() == [(*run, "FINISHED")]
            ended = database.execute(
                "select value from tags where key = 'ended' and run_uuid = ?", run
            )
            assert ended.fetchall() == [("steps",)]
            rows = database.execute("select key, step, value from metrics where run_uuid = ?", run)
            return {row for row in rows if not row[0].startswith("speed/")}


def checkpoints(folder):
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("last", "best")}


@pytest.fixture(scope="module")
def run(tmp_path_factory, store):
    """A run that was measured once without a kill."""
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("runs") / "run"
    uri = f"sqlite:///{folder.parent}/mlflow.db"
    config = parse_config(merge(SETTINGS, {"data": str(store), "tracking": {"uri": uri}}), "test")
    run = Run(folder=folder, config=config)
    run.tables = warmed_up(config, folder.with_name("warm"))
    run.clear()
    child = run.child()
    assert child.wait() == 0, run.log.read_text()
    run.seconds = time.monotonic() - child.began
    run.expected = checkpoints(folder)
    run.history = run.recorded()
    assert len(run.history) > 20
    names = {name for name, _, _ in run.history}
    assert {"train/loss", "val/accuracy", "outer/grad_norm"} <= names
    assert max(value for name, _, value in run.history if name == "val/best_accuracy") > 0
    run.check_end()
    return run


@KILLS
def test_training(run, kills):
    """A third while it starts, the others at any point between two checkpoints and within one."""
    rng = random.Random(0)
    run.clear()
    killed, ended, last, reached = 0, 0, 0, []
    while killed < kills:
        child = run.child()
        if killed % 3:
            run.wait_for_checkpoints(child)
            moment = time.monotonic() - child.began + rng.uniform(0.0, 0.1)
        else:
            moment = rng.uniform(0.0, 0.8 * run.seconds)
        if child.kill(moment):
            killed += 1
            reached.append(run.check())
            assert reached[-1] >= last  # no kill ever costs a checkpoint
            last = reached[-1]
        else:
            run.check_end()
            run.clear()
            ended, last = ended + 1, 0
    assert run.child().wait() == 0
    run.check_end()
    print(f"{killed} kills in {ended + 1} runs, after steps {sorted(set(reached))}")
    assert len(set(reached)) > 2
    assert any(0 < step < run.config.train.steps for step in reached)


def test_tracking_changes_no_weight(run, tmp_path):
    alone = run.config.tracking.model_copy(update={"enabled": False})
    train(run.config.model_copy(update={"tracking": alone}), tmp_path / "run", resume=False)
    for name, content in checkpoints(tmp_path / "run").items():
        assert tensors(content) == tensors(run.expected[name])


def tensors(content):
    """What follows the header, which holds the configuration."""
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_making_the_database(run, kills):
    """A database without some of its tables would never be of use again."""
    with sqlite3.connect(run.database) as database:
        expected = tables(database)
    rng = random.Random(0)
    database = run.folder.with_name("new") / "mlflow.db"
    target = tracking.Target(uri=f"sqlite:///{database}", experiment="e", run_name="r")

    def work():
        tracker = tracking.open_tracker(target, run_id=None, warn=pytest.fail)
        assert tracker.client is not None

    child = Child(log=run.log, work=work)
    assert child.wait() == 0, run.log.read_text()
    seconds = time.monotonic() - child.began
    absent = 0
    for _ in range(kills):
        shutil.rmtree(database.parent)
        Child(log=run.log, work=work).kill(rng.uniform(0.0, 0.9 * seconds))
        if database.exists():
            with sqlite3.connect(database) as found:
                assert tables(found) == expected
        else:
            absent += 1
    assert Child(log=run.log, work=work).wait() == 0, run.log.read_text()
    assert {p.name for p in database.parent.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}
    print(f"{kills} kills, {absent} of them before the database was there")


def tables(database):
    return sorted(database.execute("select name from sqlite_master where type = 'table'"))


@KILLS
def test_building_a_store(tmp_path, kills):
    """In an empty folder, and over a store of other images."""
    new, old = source(classes={"train": 20, "val": 5}), source(seed=1, classes={"train": 3})
    path, log = tmp_path / "own.h5", tmp_path / "log"
    sidecar = tmp_path / "own.h5.sha256"

    def build(what):
        write_store(path, what, overwrite=True)
        return path.read_bytes(), sidecar.read_bytes()

    before, after = build(old), build(new)
    child = Child(log=log, work=lambda: write_store(path, new, overwrite=True))
    assert child.wait() == 0
    seconds = time.monotonic() - child.began
    rng = random.Random(0)
    killed, left = 0, 0
    while killed < kills:
        if killed % 2:
            path.write_bytes(before[0])
            sidecar.write_bytes(before[1])
        else:
            path.unlink(missing_ok=True)
            sidecar.unlink(missing_ok=True)
        child = Child(log=log, work=lambda: write_store(path, new, overwrite=True))
        was_killed = child.kill(rng.uniform(0.0, 1.2 * seconds))
        if was_killed and killed % 2 == 0 and not path.exists():
            assert not sidecar.exists() or sidecar.read_bytes() == after[1]
        else:  # where there is a store it is whole, and its checksum is there
            assert path.read_bytes() in ((before[0], after[0]) if was_killed else (after[0],))
            assert sidecar.read_bytes() in (before[1], after[1])
            store = open_store(path)
            assert all(len(store.load(name).images) for name in store.splits)
        scratches = list(tmp_path.glob(".*.tmp"))
        left += bool(scratches)
        for scratch in scratches:
            scratch.unlink()
        assert {p.name for p in tmp_path.iterdir()} <= {path.name, sidecar.name, log.name}
        assert build(new) == after
        verify_store(path)
        killed += was_killed
    print(f"{killed} kills, {left} of them left a file under a temporary name")
    assert log.read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_within_five_seconds(run, number):
    """At random moments after the first checkpoint; what was saved goes on to the same bits."""
    rng = random.Random(int(number))
    run.clear()
    slowest, stopped = 0.0, 0
    for _ in range(4):
        before = run.check()
        child = run.child()
        run.wait_for_checkpoints(child, rng.randint(1, 3))
        time.sleep(rng.uniform(0.0, 0.02))
        seconds, status = end(child, number)
        slowest = max(slowest, seconds)
        if run.check() == run.config.train.steps:  # all was done and saved before the signal came
            break
        assert status == 130, run.log.read_text()
        assert run.check() > before
        stopped += 1
    assert stopped
    assert slowest < SECONDS_TO_STOP
    print(f"{number.name}: stopped {stopped} times, the slowest within {slowest:.2f} s")
    assert run.child().wait() == 0
    run.check_end()


def end(child, number):
    """Send a signal; return how long the process took to end, and its status."""
    sent = time.monotonic()
    os.kill(child.process, number)
    status = child.wait()
    return time.monotonic() - sent, status


def test_a_signal_in_a_long_validation(store, tmp_path):
    """Of a million episodes, which would take minutes; one of them is given up, and said to be."""
    changes = {"validate_every": 2, "validate_episodes": 10**6, "checkpoint_every": 1}
    settings = SETTINGS | {"data": str(store), "model": {"filters": 4, "norm": "support"}}
    settings |= {"train": SETTINGS["train"] | changes, "tracking": {"enabled": False}}
    run = Run(folder=tmp_path / "run", config=parse_config(settings, "test"))
    child = run.child()
    run.wait_for_checkpoints(child)
    time.sleep(1.0)  # a hyper-iteration takes milliseconds
    seconds, status = end(child, signal.SIGTERM)
    assert status == 130, run.log.read_text()
    print(f"ended a validation within {seconds:.2f} s")
    assert run.check() == 2
    assert load_checkpoint(run.last).record["validated"] is False


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else 0
