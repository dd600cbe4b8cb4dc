"""MLflow holds the whole record of a run, and its failures cost a warning each."""

import json
import math
import shutil
import socket
import threading
from dataclasses import replace

import pytest

from bilevel_apps.compare.tracked import read_run
from bilevel_apps.errors import RunError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.sweep import Plan, sweep
from bilevel_apps.sweep.table import best_first
from bilevel_apps.tracking.address import default_uri
from bilevel_apps.tracking.tracker import Target, Tracker, open_tracker
from bilevel_apps.training import loop as training
from bilevel_apps.training.loop import train

mlflow = pytest.importorskip("mlflow")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # MLflow's own are not ours to mend
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database whose tables exist, to be copied: making them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def runs(tmp_path, database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def tracked(config):
    return lambda **changes: config(tracking={"enabled": True, "every": 2}, **changes)


def client_of(folder):
    known = json.loads((folder / "tracking.json").read_text())
    return mlflow.MlflowClient(known["uri"]), known["run_id"]


def warnings_of(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]


def test_a_run_is_recorded_whole(runs, tracked, capsys, store):
    config = tracked()
    train(config, runs / "first", resume=False)
    assert warnings_of(capsys) == []
    client, run_id = client_of(runs / "first")
    run = client.get_run(run_id)
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "tiny"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    saved = RunFolder(runs / "first").load_config()
    assert run.data.params == {key: str(value) for key, value in saved.flat().items()}
    assert {"data.name", "data.file", "data.sha256.train", "version.torch"} <= run.data.tags.keys()
    assert run.data.tags["run.folder"] == str(runs / "first")
    assert run.data.tags["data.file"] == str(store)
    steps = {key: [m.step for m in client.get_metric_history(run_id, key)] for key in METRICS}
    assert steps == {key: [2, 4, 6] for key in METRICS}
    assert all(math.isfinite(value) for value in run.data.metrics.values())
    assert "val/best_accuracy" in run.data.metrics
    best = load_checkpoint(runs / "first" / "best.safetensors").record
    assert run.data.metrics["val/best_ci95"] == best["best_ci95"] > 0
    names = {entry.path for entry in client.list_artifacts(run_id)}
    assert names == {"config.yaml", "best.safetensors"}


METRICS = (
    "train/loss",
    "train/accuracy",
    "outer/grad_norm",
    "outer/lr",
    "inner/lr",
    "inner/scale",
    "speed/episodes_per_second",
    "val/accuracy",
    "val/ci95",
)


def test_logged_values_are_averages(runs, tracked, monkeypatch):
    losses = []
    whole = training._hyper_iteration

    def watch(run, batch):
        found = whole(run, batch)
        losses.append(found["train/loss"])
        return found

    monkeypatch.setattr(training, "_hyper_iteration", watch)
    train(tracked(train__steps=4), runs / "run", resume=False)
    client, run_id = client_of(runs / "run")
    history = [m.value for m in client.get_metric_history(run_id, "train/loss")]
    assert history == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])


def test_resume_continues_the_same_run(runs, tracked, monkeypatch, capsys):
    folder = runs / "run"
    whole = training._hyper_iteration

    def interrupt(run, batch):
        if run.step == 3:
            raise KeyboardInterrupt
        return whole(run, batch)

    monkeypatch.setattr(training, "_hyper_iteration", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tracked(), folder, resume=False)
    client, run_id = client_of(folder)
    assert client.get_run(run_id).info.status == "KILLED"
    monkeypatch.undo()
    train(RunFolder(folder).load_config(), folder, resume=True)
    assert client_of(folder)[1] == run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert client.get_metric_history(run_id, "val/accuracy")[-1].step == 6
    assert warnings_of(capsys) == []


def test_children_of_a_sweep_are_nested(runs, tracked, monkeypatch, capsys):
    folder, whole = runs / "lrs", training._hyper_iteration
    given = tracked(model__unit_length=False, train__steps=4)

    def interrupt(run, batch):
        if run.step == 2:
            raise KeyboardInterrupt
        return whole(run, batch)

    monkeypatch.setattr(training, "_hyper_iteration", interrupt)
    plan = Plan(axes=("inner.lr=0.1,0.5,1e38",))
    with pytest.raises(KeyboardInterrupt):
        sweep(given, folder, plan, resume=False)
    client, run_id = client_of(folder)
    assert client.get_run(run_id).info.status == "KILLED"
    monkeypatch.setattr(training, "_hyper_iteration", whole)
    children = sweep(given, folder, plan, resume=True)
    parent = client.get_run(run_id)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "lrs")
    runs = client.search_runs([parent.info.experiment_id])
    below = {run.info.run_name: run for run in runs if run.info.run_id != run_id}
    assert below.keys() == {child.name for child in children}
    statuses = []
    for child in children:
        run = below[child.name]
        assert run.data.tags["mlflow.parentRunId"] == run_id
        assert RunFolder(folder / child.name).load_tracking()["run_id"] == run.info.run_id
        statuses.append(run.info.status)
    assert statuses == ["FINISHED", "FINISHED", "FAILED"]
    best = best_first(children)[0]
    assert parent.data.tags["best"] == best.name
    assert parent.data.tags["run.folder"] == str(folder)
    assert parent.data.tags["best.inner.lr"] == str(best.settings["inner.lr"])
    assert parent.data.metrics["val/best_accuracy"] == best.accuracy
    assert parent.data.metrics["train/loss"] == below[best.name].data.metrics["train/loss"]
    assert (parent.data.metrics["sweep/finished"], parent.data.metrics["sweep/failed"]) == (2, 1)
    history = client.get_metric_history(run_id, "child/accuracy")
    assert [(m.step, m.value) for m in history] == [
        (1, children[0].accuracy),
        (2, children[1].accuracy),
    ]
    names = {entry.path for entry in client.list_artifacts(run_id)}
    assert names == {"children.csv", "sweep.json"}
    assert warnings_of(capsys) == []


def test_a_failed_run_is_marked(runs, tracked):
    with pytest.raises(RunError):
        train(tracked(inner__lr=1e38, model__unit_length=False), runs / "run", resume=False)
    client, run_id = client_of(runs / "run")
    assert client.get_run(run_id).info.status == "FAILED"


def test_two_runs_compare_in_one_database(runs, tracked):
    for seed in (0, 1):
        train(tracked(seed=seed), runs / f"seed-{seed}", resume=False)
    client, _ = client_of(runs / "seed-0")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    found = client.search_runs([experiment.experiment_id], order_by=["metrics.`val/accuracy`"])
    assert {run.data.params["seed"] for run in found} == {"0", "1"}
    assert all("val/accuracy" in run.data.metrics for run in found)
    assert len(client.search_runs([experiment.experiment_id], "params.seed = '1'")) == 1


def test_a_lost_database_begins_a_new_run(runs, tracked, database, capsys):
    folder = runs / "run"
    train(tracked(), folder, resume=False)
    shutil.copy(database, runs / "mlflow.db")
    train(RunFolder(folder).load_config(), folder, resume=True)
    client, run_id = client_of(folder)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert warnings_of(capsys) == []


def test_evaluation_is_logged_to_the_run(runs, tracked, capsys):
    folder = runs / "run"
    train(tracked(), folder, resume=False)
    client, run_id = client_of(folder)
    client.set_terminated(run_id, status="KILLED")
    report = evaluate_run(folder, EvaluationRequest(episodes=5, track=True, device="cpu")).as_json()
    run = client.get_run(run_id)
    assert run.data.metrics["test/5way-1shot/accuracy"] == report["accuracy"]
    assert run.data.metrics["test/5way-1shot/ci95"] == report["ci95"]
    assert run.info.status == "KILLED"  # a score says nothing about how the training ended
    assert warnings_of(capsys) == []


def test_a_curve_is_logged_by_t_beside_the_runs_score(runs, tracked):
    folder = runs / "run"
    train(tracked(), folder, resume=False)
    request = EvaluationRequest(
        split="val", steps=(1, 50), lr=(0.01, 0.1), track=True, device="cpu"
    )
    evaluate_run(folder, replace(request, episodes=4))
    report = evaluate_run(folder, replace(request, episodes=5)).as_json()
    client, run_id = client_of(folder)
    latest = client.get_run(run_id).data.metrics
    assert latest["val/5way-1shot/accuracy"] == report["accuracy"]  # at T = 5, of the last one
    assert latest["val/5way-1shot/ci95"] == report["ci95"]
    for row in report["curve"]:
        lr = "" if row["lr"] == report["lr"] else f"lr-{row['lr']:.4g}/"
        history = client.get_metric_history(run_id, f"val/5way-1shot/by-T/{lr}accuracy")
        assert [m.value for m in history if m.step == row["steps"]][-1] == row["accuracy"]
    names = {entry.path for entry in client.list_artifacts(run_id, "pictures")}
    assert names == {"pictures/steps-val.png"}
    known = read_run(str(client.tracking_uri), run_id, folder)
    assert known.metrics["val/5way-1shot/accuracy"] == report["accuracy"]
    assert not [name for name in known.metrics if "by-T" in name]  # a curve is no figure of a run


def test_a_choice_that_is_tracked_has_the_score_of_what_is_chosen(runs, tracked):
    folder = runs / "run"
    train(tracked(model__filters=16), folder, resume=False)
    request = EvaluationRequest(split="val", episodes=20, steps=(1, 5, 50), device="cpu")
    report = evaluate_run(folder, replace(request, choose=True, track=True)).as_json()
    client, run_id = client_of(folder)
    (best,) = [r for r in report["curve"] if r["steps"] == report["chosen"]["steps"]]
    assert best["accuracy"] > report["accuracy"]
    latest = client.get_run(run_id).data.metrics
    assert latest["val/5way-1shot/accuracy"] == best["accuracy"]


def test_evaluation_of_an_untracked_run_warns(trained, capsys):
    evaluate_run(trained, EvaluationRequest(episodes=2, track=True, device="cpu"))
    (warning,) = warnings_of(capsys)
    assert "was not tracked" in warning


@pytest.mark.parametrize("kind", ["file", "scheme"])
def test_a_tracker_that_cannot_open_costs_one_warning(tmp_path, config, trained, capsys, kind):
    (tmp_path / "file").touch()
    uri = {"file": f"sqlite:///{tmp_path}/file/x/mlflow.db", "scheme": "nonsense://x"}[kind]
    chosen = config(tracking={"enabled": True, "uri": uri})
    train(chosen, tmp_path / "run", resume=False)
    (warning,) = warnings_of(capsys)
    assert f"no tracking at {uri}, training goes on without it" in warning
    assert not (tmp_path / "run" / "tracking.json").exists()
    _same_weights(tmp_path / "run", trained)


def test_a_tracker_that_fails_later_costs_one_warning(runs, tracked, trained, capsys, monkeypatch):
    calls = []
    whole = mlflow.MlflowClient.log_batch

    def fail(client, *arguments, **options):
        calls.append(options)
        if options.get("metrics"):
            raise ConnectionError("the server\nis gone")
        return whole(client, *arguments, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail)
    monkeypatch.setattr("bilevel_apps.tracking.tracker.FLUSH_SECONDS", 0.0)
    train(tracked(), runs / "run", resume=False)
    assert warnings_of(capsys) == [
        "warning: tracking stopped, training goes on (the server)",
    ]
    assert len(calls) == 2  # the parameters, then the first metrics, then nothing more
    _same_weights(runs / "run", trained)


def _same_weights(a, b):
    a, b = (load_checkpoint(folder / "last.safetensors").tensors for folder in (a, b))
    assert a.keys() == b.keys()
    assert all(a[k].equal(b[k]) for k in a)


class Client:
    def __init__(self):
        self.batches = []

    def log_batch(self, run_id, *, metrics):
        self.batches.append([(m.key, m.value, m.step) for m in metrics])


def test_metrics_are_buffered(monkeypatch):
    client = Client()
    tracker = Tracker(warn=pytest.fail, client=client, run_id="r")
    for step in range(1500):
        tracker.metrics(step, {"a": step})
    assert client.batches == []
    tracker.flush()
    assert [len(batch) for batch in client.batches] == [1000, 500]
    assert [*client.batches[0], *client.batches[1]] == [("a", float(k), k) for k in range(1500)]
    tracker.flush()
    assert len(client.batches) == 2
    monkeypatch.setattr("bilevel_apps.tracking.tracker.FLUSH_SECONDS", 0.0)
    tracker.metrics(7, {"a": 1})
    assert client.batches[2:] == [[("a", 1.0, 7)]]


def test_no_target_is_no_tracking():
    tracker = open_tracker(None, run_id=None, warn=pytest.fail)
    tracker.describe({"a": 1}, {})
    tracker.metrics(0, {"a": 1})
    tracker.finish("FINISHED")
    assert tracker.client is None


def test_default_address(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(tmp_path / "run") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert default_uri(tmp_path / "run") == "http://127.0.0.1:5000"


def test_artifacts_lie_beside_the_database(runs):
    target = Target(uri=f"sqlite:///{runs}/mlflow.db", experiment="e", run_name="r")
    tracker = open_tracker(target, run_id=None, warn=pytest.fail)
    (runs / "file.txt").write_text("x")
    tracker.artifact(runs / "file.txt")
    assert [path.name for path in (runs / "mlartifacts" / "e").rglob("file.txt")] == ["file.txt"]


def test_a_server_that_hangs_up_is_given_up_soon(config, tmp_path, monkeypatch, capsys):
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                calls.append(connection)
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        chosen = config(tracking={"enabled": True, "uri": uri}, train__steps=1)
        train(chosen, tmp_path / "run", resume=False)
        server.shutdown(socket.SHUT_RDWR)
    (warning,) = warnings_of(capsys)
    assert f"no tracking at {uri}" in warning
    assert 1 <= len(calls) <= 3
