"""What a person keeps under a name of ours, or beside our files, is not lost or taken for ours."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import yaml

from bilevel_apps.compare.database import client_of
from bilevel_apps.errors import InputError
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.files import read_json
from bilevel_apps.training.loop import train

HALF = "0123abcd.tmp"


@pytest.mark.parametrize("kept", ["kubernetes: my only copy\n", "seed: 3  # because of the moon\n"])
def test_a_file_of_settings_is_not_overwritten(tmp_path, config, kept):
    own = tmp_path / "config.yaml"
    own.write_text(kept)
    with pytest.raises(InputError, match=r"config\.yaml: there already, not as a run writes it"):
        train(config(), tmp_path, resume=False)
    assert own.read_text() == kept


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, config, trained):
    config_of_it = (trained / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").write_bytes(config_of_it)
    train(config(), tmp_path, resume=False)
    assert (tmp_path / "config.yaml").read_bytes() == config_of_it
    assert (tmp_path / "last.safetensors").read_bytes() == (
        trained / "last.safetensors"
    ).read_bytes()


def test_only_our_own_half_written_files_are_removed(tmp_path):
    ours = [f".last.safetensors.{HALF}", f".config.yaml.{HALF}", f".seed-0.json.{HALF}"]
    others = [".thesis.tmp", f".glyphs.h5.{HALF}", ".last.safetensors.tmp", f".a.json.{HALF}x.tmp"]
    for name in ours + others:
        (tmp_path / name).write_text("precious")
    (tmp_path / f".d.json.{HALF}").mkdir()
    with RunFolder(tmp_path).exclusive():
        pass
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {*others, f".d.json.{HALF}", ".lock"}


def test_another_programs_database_is_left_as_it_is(tmp_path):
    path = tmp_path / "mine.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE letters (text)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"mine\.db: a database, but not one of MLflow: give"):
        client_of(f"sqlite:///{path}")
    assert path.read_bytes() == before


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def deep(path):
    path.write_text("[" * 100_000)


def latin(path):
    path.write_bytes(b'"\xe9"')


@pytest.mark.parametrize("make", [pipe, endless, deep, latin])
def test_json_that_is_none(tmp_path, make):
    make(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"x\.json|utf-8"):
        read_json(tmp_path / "x.json")


def test_json_is_read_up_to_a_limit(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text(json.dumps([1] * 9))
    assert read_json(tmp_path / "x.json") == [1] * 9
    monkeypatch.setenv("BILEVEL_MAX_RECORD_BYTES", "20")
    with pytest.raises(ValueError, match=r"27 bytes of a record, more than 20"):
        read_json(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "y.json")


@pytest.mark.parametrize("text", ['{"a": 1}', '{"uri": 1, "run_id": "x"}', "[]", "{"])
def test_a_damaged_address_of_the_tracker_is_none(tmp_path, text):
    (tmp_path / "tracking.json").write_text(text)
    assert RunFolder(tmp_path).load_tracking() == {}
    RunFolder(tmp_path).save_tracking("sqlite:///a.db", "b")
    assert RunFolder(tmp_path).load_tracking() == {"uri": "sqlite:///a.db", "run_id": "b"}


@pytest.mark.process
def test_a_result_survives_a_terminal_of_few_letters(trained):
    words = ["bilevel_apps.cli.evaluate", trained, "--episodes", "2", "--lr", "0.1,0.2"]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words), "--plot", str(trained.parent / "curve.png")],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u03b7" in done.stdout


@pytest.mark.process
def test_sigterm_leaves_nothing_of_a_store(tmp_path):
    words = ["bilevel_apps.cli.data", "prepare", "glyphs", "--out", str(tmp_path / "g.h5")]
    with subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".g.h5.*.tmp")) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend
def test_sigterm_is_heard_while_the_database_is_locked(tmp_path, settings):
    """A checkpoint is saved and the process ends before the lock does, with one warning."""
    chosen = settings(train__steps=10**6, tracking__enabled=True, tracking__every=1)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(chosen))
    run = tmp_path / "run"
    words = [sys.executable, "-m", "bilevel_apps.cli.train", tmp_path / "c.yaml", "--out", run]
    with subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not (run / "last.safetensors").exists() and time.monotonic() < until:
            time.sleep(0.05)
        database = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(12)  # metrics are sent every ten seconds: one such call waits for the lock
        before = (run / "last.safetensors").stat().st_mtime_ns
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
        database.close()
    assert process.returncode == 130
    assert (run / "last.safetensors").stat().st_mtime_ns > before
    (warning,) = [line for line in told.splitlines() if "racking" in line]
    assert "tracking stopped, training goes on (no answer" in warning
    assert "Traceback" not in told
