"""A run, its database and its data that were moved are one thing, in folders of any name."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_apps.config import parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.folder import RunFolder, moved_data
from bilevel_apps.runs.load import load_run
from bilevel_apps.system.moved import moved
from bilevel_apps.tracking.address import database_file, has_run, sqlite_uri, take_artifacts
from bilevel_apps.tracking.place import record_of

ODD = "ru ns %20 %2F #1 ? ж日"
SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER, artifact_location TEXT);
CREATE TABLE runs (run_uuid TEXT, artifact_uri TEXT);
CREATE TABLE metrics (key TEXT);
"""


def make_database(path, run_id="a" * 32, artifacts=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    place = artifacts or f"{path.resolve().parent.as_uri()}/mlartifacts/x"
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(SCHEMA)
        database.execute("INSERT INTO experiments VALUES (1, ?)", (place,))
        database.execute("INSERT INTO runs VALUES (?, ?)", (run_id, f"{place}/{run_id}/artifacts"))
    return path


def places_of(path):
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(
            "SELECT artifact_location FROM experiments UNION SELECT artifact_uri FROM runs"
        )
        return [place for (place,) in found]


@given(
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1)
    .filter(lambda name: name not in (".", ".."))
    .map(lambda name: Path("/", name, "mlflow.db"))
)
def test_a_path_is_quoted_and_read_back(path):
    uri = sqlite_uri(path)
    assert database_file(uri) == path
    assert "?" not in uri


def test_addresses_of_earlier_versions(tmp_path):
    folder = tmp_path / "100%25 runs"
    folder.mkdir()
    (folder / "mlflow.db").touch()
    assert database_file(f"sqlite:///{folder}/mlflow.db") == folder / "mlflow.db"
    assert database_file(sqlite_uri(folder / "mlflow.db")) == folder / "mlflow.db"
    assert database_file("http://127.0.0.1:5000") is None
    assert database_file("sqlite:////x/m.db?timeout=3") == Path("/x/m.db")


def test_what_was_moved_along_is_found(tmp_path):
    run = tmp_path / "new" / "runs" / "r"
    run.mkdir(parents=True)
    for place in ("new/data", "new", "elsewhere"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "s.h5").touch()
    fits = Path.is_file
    assert moved(Path("/old/data/s.h5"), run, fits) == tmp_path / "new" / "s.h5"
    (tmp_path / "new" / "s.h5").unlink()
    assert moved(Path("/old/data/s.h5"), run, fits) == tmp_path / "new/data/s.h5"
    assert moved(Path("/old/data/t.h5"), run, fits) is None
    there = tmp_path / "elsewhere" / "s.h5"
    assert moved(there, tmp_path / "x" / "y", fits) == there
    assert moved_data(there, run) == there
    assert moved_data(None, run) is None
    assert moved_data("/old/data/s.h5", run, lambda path: False) is None


@pytest.mark.parametrize("name", ["plain", ODD])
def test_the_record_of_a_folder_that_was_moved(tmp_path, name):
    old, new = tmp_path / "old", tmp_path / name
    database = make_database(old / "mlflow.db")
    folder = RunFolder(old / "r")
    folder.path.mkdir()
    folder.save_tracking(sqlite_uri(database), "a" * 32)
    shutil.move(old, new)
    found = record_of(RunFolder(new / "r"))
    assert found == (sqlite_uri(new / "mlflow.db"), "a" * 32, True)
    take_artifacts(new / "mlflow.db")
    here = (new / "mlartifacts").as_uri()
    assert all(place.startswith(here) for place in places_of(new / "mlflow.db"))
    # Without its database, the record is where it was, and not there.
    (new / "mlflow.db").unlink()
    assert record_of(RunFolder(new / "r")) == (sqlite_uri(database), "a" * 32, False)
    assert not old.exists()


def test_a_copy_records_in_its_own_database(tmp_path):
    database = make_database(tmp_path / "old" / "mlflow.db")
    (tmp_path / "old" / "r").mkdir()
    RunFolder(tmp_path / "old" / "r").save_tracking(sqlite_uri(database), "a" * 32)
    (tmp_path / "old" / "mlartifacts").mkdir()
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert record_of(RunFolder(tmp_path / "new/r")).uri == sqlite_uri(tmp_path / "new/mlflow.db")
    assert record_of(RunFolder(tmp_path / "old/r")).uri == sqlite_uri(database)


def test_a_database_without_the_run_is_not_taken(tmp_path):
    make_database(tmp_path / "mlflow.db", run_id="b" * 32)
    recorded = make_database(tmp_path / "there" / "tracks.db")
    folder = RunFolder(tmp_path / "r")
    folder.path.mkdir()
    folder.save_tracking(sqlite_uri(recorded), "a" * 32)
    assert record_of(folder) == (sqlite_uri(recorded), "a" * 32, True)
    (tmp_path / "no.db").write_text("no database")
    assert not has_run(tmp_path / "no.db", "a" * 32)
    assert not has_run(tmp_path, "a" * 32)
    assert record_of(RunFolder(tmp_path / "untracked")) is None


def test_artifacts_that_lie_elsewhere_are_left_there(tmp_path):
    elsewhere = tmp_path / "disk" / "mlartifacts"
    (elsewhere / "x").mkdir(parents=True)
    for place in ((elsewhere / "x").as_uri(), "s3://bucket/mlartifacts/x"):
        database = make_database(tmp_path / place[:2] / "mlflow.db", artifacts=place)
        before = places_of(database)
        for run in ("a" * 32,):
            (elsewhere / "x" / run / "artifacts").mkdir(parents=True, exist_ok=True)
        take_artifacts(database)
        assert places_of(database) == before


def test_the_store_of_a_run_that_was_moved(trained, store, tmp_path, make_store):
    """It is found by its name and its images, or the message names the option."""
    (tmp_path / "runs").mkdir()
    folder = shutil.copytree(trained, tmp_path / "runs" / "r")
    run = load_run(folder, "cpu")
    gone = str(tmp_path / "gone" / "s.h5")
    run.__dict__["config"] = run.config.model_copy(update={"data": gone})
    with pytest.raises(InputError, match=r"s\.h5: .* `data`=FILE\.h5"):
        run.store(None)
    shutil.copy(make_store(seed=3), tmp_path / "runs" / "s.h5")  # of its name alone
    shutil.copy(store, tmp_path / "s.h5")
    assert run.store(None).path == tmp_path / "s.h5"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend
def test_a_run_that_moves(tmp_path, config, store, monkeypatch, capsys):
    """Made, moved with its database and its data, resumed, compared and scored there."""
    mlflow = pytest.importorskip("mlflow")
    # What one process knows of a run's files, and the next, on another day, does not.
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache as artifacts

    from bilevel_apps.compare.select import choose_runs
    from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
    from bilevel_apps.training import loop

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    old, new = tmp_path / "old", tmp_path / ODD
    old.mkdir()
    shutil.copy(store, old / "data.h5")
    whole = loop._hyper_iteration

    def interrupt(run, batch):
        if run.step == 4:
            raise KeyboardInterrupt
        return whole(run, batch)

    settings = config(data=str(old / "data.h5"), tracking={"enabled": True, "every": 2})
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_hyper_iteration", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loop.train(settings, old / "r", resume=False)
    run_id = RunFolder(old / "r").load_tracking()["run_id"]
    shutil.move(old, new)
    folder = RunFolder(new / "r")
    artifacts.clear()
    capsys.readouterr()

    # Nothing is given: the database and the store are found beside the run.
    loop.train(folder.continued(parse_config({}, "test")), folder.path, resume=True)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == []
    assert folder.load_tracking() == {"run_id": run_id, "uri": sqlite_uri(new / "mlflow.db")}
    client = mlflow.MlflowClient(sqlite_uri(new / "mlflow.db"))
    (run,) = client.search_runs(["1"])
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert run.info.artifact_uri.startswith((new / "mlartifacts").as_uri())
    steps = [entry.step for entry in client.get_metric_history(run_id, "val/accuracy")]
    assert steps == [2, 4, 6]

    (chosen,) = choose_runs([str(folder.path)], list, sqlite_uri(new / "mlflow.db"))
    assert (chosen.id, chosen.folder) == (run_id, folder.path)
    report = evaluate_run(folder.path, EvaluationRequest(episodes=3, track=True, device="cpu"))
    metrics = client.get_run(run_id).data.metrics
    assert metrics["test/5way-1shot/accuracy"] == report.score.accuracy
    assert not old.exists()
    assert {path.name for path in tmp_path.iterdir()} == {ODD}
