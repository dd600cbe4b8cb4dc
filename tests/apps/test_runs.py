"""Runs side by side: who is meant, what the table says, and the same episodes for all."""

import csv
import dataclasses
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import browser
from bilevel_apps.cli import runs as command_line
from bilevel_apps.compare import CompareRequest, TrackedRun, compare_runs, list_runs, read_runs
from bilevel_apps.compare.database import find_uri
from bilevel_apps.compare.paired import EpisodeChoice, paired_scores
from bilevel_apps.compare.select import choose_runs
from bilevel_apps.compare.table import Cell, Format, Table, number
from bilevel_apps.compare.ui import serve
from bilevel_apps.embed import EmbedRequest
from bilevel_apps.errors import InputError
from bilevel_apps.runs.load import load_run
from bilevel_apps.scoring.score import score
from bilevel_apps.training.loop import train
from bilevel_meta.episodes import to_device

MLFLOW_WARNINGS = pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend


def tracked(name, run_id="", accuracy=None, **params):
    params = {"model.name": "omniglot-net", "episode.way": "5", "episode.shot": "1"} | {
        key.replace("__", "."): value for key, value in params.items()
    }
    found = {} if accuracy is None else {"val/accuracy": accuracy, "val/best_accuracy": accuracy}
    return TrackedRun(
        id=run_id,
        name=name,
        experiment="tiny",
        status="FINISHED",
        params=params,
        metrics=found,
        intervals=dict.fromkeys(found, 0.01),
        step=30,
        minutes=1.25,
    )


A = tracked("a", "aaaa1111", 0.9, train__lr="0.01", train__steps="30")
B = tracked("b", "bbbb2222", 0.95, train__lr="0.003", train__steps="30")
C = tracked("a", "aaaa3333", None, train__lr="0.1", train__steps="30")


def names(table):
    return [row["run"].shown for row in table.rows]


@pytest.mark.parametrize(
    ("word", "expected"), [("b", B), ("bbbb", B), ("aaaa3", C), ("aaaa1111", A)]
)
def test_a_run_is_meant_by_its_name_or_the_beginning_of_its_id(word, expected):
    assert choose_runs([word], lambda: [A, B, C]) == [expected]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("a", r"a: 2 runs are meant: .* aaaa1111 \(tiny\), aaaa3333 \(tiny\)"),
        ("aaaa", "2 runs are meant"),
        ("bb", "no run has this name"),  # too short for an id
        ("nowhere", "see bilevel-runs list"),
    ],
)
def test_words_that_mean_no_run_or_several_are_refused(word, message):
    with pytest.raises(InputError, match=message):
        choose_runs([word], lambda: [A, B, C])


def test_a_name_nearby_is_proposed():
    with pytest.raises(InputError, match=r"did you mean glyphs\?"):
        choose_runs(["glyps"], lambda: [tracked("glyphs", "c0ffee00")])


def test_a_run_that_is_named_twice_comes_once():
    assert choose_runs(["b", "bbbb2222", "aaaa1"], lambda: [A, B, C]) == [B, A]


def test_a_folder_that_was_not_tracked_needs_no_database(trained):
    (run,) = choose_runs([str(trained)], lambda: pytest.fail("asked for the database"))
    assert (run.name, run.status, run.folder) == ("trained", "not tracked", trained)
    assert run.params["model.filters"] == "4"


def test_the_list():
    (row, other) = list_runs([A, C]).rows
    shown = {key: cell.shown for key, cell in row.items()}
    assert shown == {
        "run": "a",
        "id": "aaaa1111",
        "experiment": "tiny",
        "status": "FINISHED",
        "model": "omniglot-net",
        "task": "5-way 1-shot",
        "steps": "30/30",
        "val accuracy": "90.00 ± 1.00 %",
        "minutes": "1.2",
    }
    assert "val accuracy" not in other


def test_the_comparison_shows_what_differs_best_first():
    table, note = compare_runs([A, B, C], CompareRequest())
    assert names(table) == ["b", "a", "a"]
    assert note == ""
    assert list(table.columns) == [
        "run",
        "id",
        "status",
        "train.lr",
        "val/accuracy",
        "val/best_accuracy",
        "minutes",
    ]
    assert [row["train.lr"].shown for row in table.rows] == ["0.003", "0.01", "0.1"]


def test_a_key_that_is_newer_than_a_run_has_its_default():
    new = dataclasses.replace(B, params={**B.params, "train.weight_decay": "0.001"})
    assert "train.weight_decay" not in compare_runs([A, new], CompareRequest())[0].columns
    other = dataclasses.replace(B, params={**B.params, "train.weight_decay": "0.5"})
    (_, row) = compare_runs([other, A], CompareRequest())[0].rows
    assert row["train.weight_decay"].shown == "0.001"


def test_parameters_sort_as_numbers():
    assert names(compare_runs([C, A, B], CompareRequest(sort="train.lr"))[0]) == ["b", "a", "a"]
    runs = [tracked(str(k), str(k), train__steps=str(k)) for k in (1000, 30, 200)]
    assert names(compare_runs(runs, CompareRequest(sort="train.steps"))[0]) == ["30", "200", "1000"]


def test_a_key_that_no_run_has_is_refused():
    with pytest.raises(InputError, match="`sort`=val/acuracy: no run has it: try val/accuracy"):
        compare_runs([A, B], CompareRequest(sort="val/acuracy"))
    assert names(compare_runs([C], CompareRequest())[0]) == ["a"]  # nobody asked for it


TABLE = Table(
    columns=["run", "x"],
    rows=[
        {
            "run": Cell(shown="a|b", values={"run": "a|b"}),
            "x": number("x", 0.5, 0.125, percent=True),
        },
        {"run": Cell(shown='c,"d"', values={"run": 'c,"d"'})},
    ],
)


def test_a_table_as_text():
    assert TABLE.render(Format.TEXT).splitlines() == [
        "run    x",
        "a|b    50.00 ± 12.50 %",
        'c,"d"  –',
    ]
    wide = dataclasses.replace(TABLE, columns=["run", "x", *"abcdefgh"], turns=True)
    assert wide.render(Format.TEXT).splitlines()[0].split() == ["run", "a|b", 'c,"d"']


def test_a_table_as_markdown():
    assert TABLE.render(Format.MARKDOWN).splitlines() == [
        "| run | x |",
        "| --- | --- |",
        "| a\\|b | 50.00 ± 12.50 % |",
        '| c,"d" | – |',
    ]


def test_a_table_as_csv_has_every_digit():
    third = Table(columns=["x"], rows=[{"x": number("x", 1 / 3, percent=True)}])
    assert float(list(csv.reader(io.StringIO(third.render(Format.CSV))))[1][0]) == 1 / 3
    assert list(csv.DictReader(io.StringIO(TABLE.render(Format.CSV)))) == [
        {"run": "a|b", "x": "0.5", "x ci95": "0.125"},
        {"run": 'c,"d"', "x": "", "x ci95": ""},
    ]


@pytest.fixture(scope="module")
def second(tmp_path_factory, config):
    """A run of another T and seed."""
    folder = tmp_path_factory.mktemp("runs") / "second"
    train(config(seed=1, inner__steps=2), folder, resume=False)
    return folder


EPISODES = EpisodeChoice(count=9, device="cpu", seed=3)


def untracked(*folders):
    return choose_runs([str(folder) for folder in folders], lambda: pytest.fail("no database"))


def by_hand(folder, episodes=EPISODES):
    """The accuracy of each episode, encoded one by one."""
    run = load_run(folder, "cpu")
    sampler = run.sampler(
        run.store(None), episodes.split, seed=episodes.seed, rotations=False, way=episodes.way
    )
    return np.array(
        [
            float(
                run.learner.accuracies(to_device(sampler.batch(k, 1), sampler.spec.way, run.device))
            )
            for k in range(episodes.count)
        ]
    )


def test_differences_are_taken_episode_by_episode(trained, second):
    a, b = by_hand(trained), by_hand(second)
    found = paired_scores(untracked(trained, second), EPISODES)
    assert [s.accuracy for s in found.scores] == pytest.approx([a.mean(), b.mean()])
    first, difference = found.differences
    assert first is None
    assert difference.accuracy == pytest.approx((b - a).mean())
    spread = np.sqrt(((b - a - (b - a).mean()) ** 2).sum() / 8)
    assert difference.ci95 == pytest.approx(1.96 * spread / 3)
    assert difference.ci95 > 0
    assert "9 episodes of val, 5-way 1-shot, 3 queries a class, seed 3" in found.what


def test_the_order_that_is_given_is_kept(trained, second):
    """The first is what the others are compared with, whatever they came to."""
    runs = untracked(trained, second)
    for given in (runs, runs[::-1]):
        request = CompareRequest(sort=None, episodes=EPISODES)
        table, _ = compare_runs(given, request)
        assert names(table) == [run.name for run in given]
        assert f"difference to {given[0].name}" in table.columns
        assert f"difference to {given[0].name}" not in table.rows[0]


def test_the_inner_loops_that_were_used_are_rows(trained, second):
    table, _ = compare_runs(untracked(trained, second), CompareRequest(episodes=EPISODES))
    steps = {row["run"].shown: row["T"].shown for row in table.rows}
    assert steps == {"trained": "5", "second": "2"}
    assert {row["head"].shown for row in table.rows} == {"descent"}
    lr = load_run(second, "cpu").learner.inner.lr
    assert table.rows[-1]["η"].values == {"η": pytest.approx(lr)}


def test_a_copy_differs_by_nothing(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    found = paired_scores(untracked(trained, tmp_path / "copy"), EPISODES)
    assert found.differences[1] == score(np.zeros(9))


def test_the_kind_of_episode_can_be_given(trained):
    wanted = dataclasses.replace(EPISODES, split="test", way=3)
    found = paired_scores(untracked(trained), wanted)
    assert found.scores[0].accuracy == pytest.approx(by_hand(trained, wanted).mean())
    assert "of test, 3-way" in found.what


def test_a_run_that_cannot_be_scored_costs_a_warning(trained, second, capsys):
    lost = dataclasses.replace(A, folder=None)
    found = paired_scores([lost, *untracked(trained, second)], EPISODES)
    assert found.scores[0] is None
    assert found.differences[:2] == [None, None]  # the next one is what others are compared with
    assert found.differences[2] is not None
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("warning: a is not scored: it is no longer in the folder where it")


def test_images_of_another_size_are_not_scored(trained, tmp_path, config, make_store, capsys):
    larger = tmp_path / "larger"
    train(config(data=str(make_store(size=20)), train__steps=1), larger, resume=False)
    found = paired_scores(untracked(trained, larger), EPISODES)
    assert found.scores[1] is None
    assert "it takes images (20, 20, 1), but the episodes are of (16, 16, 1)" in (
        capsys.readouterr().err
    )


def test_one_episode_is_refused_before_any_is_scored(command, trained):
    line = refusal(command("compare", trained, "--episodes", 1, "--device", "cpu"))
    assert line == "error: episodes=1: fewer than two have no interval: give more"


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bilevel-runs", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return ended.value.code, *capsys.readouterr()

    return run


def refusal(outcome):
    status, out, err = outcome
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


def test_folders_compare_without_a_database(command, trained, second):
    status, out, _ = command(
        "compare", trained, second, "--episodes", 5, "--device", "cpu", "--format", "csv"
    )
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["run"] for row in rows] == ["trained", "second"]
    assert [row["inner.steps"] for row in rows] == ["5", "2"]
    apart = [float(row["same episodes"]) for row in rows]
    assert float(rows[1]["difference to trained"]) == pytest.approx(apart[1] - apart[0])
    assert rows[0]["difference to trained"] == ""


def test_the_note_says_which_episodes(command, trained, second):
    _, out, _ = command("compare", trained, second, "--episodes", 5, "--device", "cpu")
    *_, empty, note = out.splitlines()
    assert empty == ""
    assert note.startswith("same episodes: 5 episodes of val, 5-way 1-shot")
    _, out, err = command("compare", trained, second, "--episodes", 0)
    assert "same episodes" not in out
    assert err == ""


@pytest.mark.parametrize("words", [["list"], ["compare"], ["compare", "name"], ["ui"]])
def test_a_database_that_is_not_there_is_refused_and_not_made(
    command, tmp_path, monkeypatch, words
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    line = refusal(command(*words))
    assert line.endswith("runs/mlflow.db: no database of MLflow: train a run first, or give --uri")
    line = refusal(command(*words, "--uri", tmp_path / "other.db"))
    assert f"{tmp_path / 'other.db'}: no database" in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused(command, tmp_path):
    (tmp_path / "text.db").write_text("not a database\n")
    assert "no database of MLflow" in refusal(command("list", "--uri", tmp_path / "text.db"))


def test_the_database_is_found_where_training_puts_it(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(b"SQLite format 3\x00")
    for place in (tmp_path, tmp_path / "runs"):
        monkeypatch.chdir(place)
        assert find_uri(None) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert find_uri(None) == "http://127.0.0.1:1"


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"`port`={port}: cannot be used .*: give another"):
            serve("sqlite:///any.db", port, tell=pytest.fail)
    with pytest.raises(InputError, match="a server already: open it in a browser"):
        serve("http://127.0.0.1:1", 0, tell=pytest.fail)


RUNS = ("quick", "longer", "wider", "colder")
CHANGES = (
    {"inner__steps": 3},
    {"train__steps": 8},
    {"model__filters": 8},
    {"train__lr": 1e-4},
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, config):
    """Four tracked runs, the first with its pictures."""
    pytest.importorskip("mlflow")
    from bilevel_apps.cli.embed import _track
    from bilevel_apps.embed import embed_run

    folder = tmp_path_factory.mktemp("tracked")
    for name, change in zip(RUNS, CHANGES, strict=True):
        tracking = {"enabled": True, "every": 1, "uri": f"sqlite:///{folder}/mlflow.db"}
        train(config(tracking=tracking, **change), folder / name, resume=False)
    request = EmbedRequest(pairs=2, queries=2, neighbours=3, classes=3, device="cpu")
    _track(folder / "quick", embed_run(folder / "quick", folder / "pictures", request))
    return folder


@pytest.mark.slow
@MLFLOW_WARNINGS
def test_tracked_runs_are_listed_and_compared(command, runs):
    database = ("--uri", runs / "mlflow.db")
    status, out, _ = command("list", *database)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["run", *reversed(RUNS)]
    rows = json.loads(_as_json(command("list", *database, "--format", "csv")[1]))
    assert {row["status"] for row in rows} == {"FINISHED"}
    assert [row["steps"] for row in rows] == ["6/6", "6/6", "8/8", "6/6"]
    assert all(0 <= float(row["val accuracy"]) <= 1 for row in rows)
    assert all(float(row["val accuracy ci95"]) >= 0 for row in rows)

    options = ("--episodes", 4, "--device", "cpu", "--format", "csv")
    status, out, _ = command("compare", *RUNS[:3], runs / "colder", *database, *options)
    assert status == 0
    rows = json.loads(_as_json(out))
    assert {row["run"] for row in rows} == set(RUNS)
    differing = [
        name for name in rows[0] if name.startswith(("inner.", "train.", "model.", "seed"))
    ]
    assert differing == ["model.filters", "inner.steps", "train.steps", "train.lr"]
    assert all(row["same episodes"] for row in rows)  # the folders were found beside the database
    assert [row["run"] for row in rows] == [*RUNS[:3], "colder"]  # as they are given
    (quick,) = [row for row in rows if row["run"] == "quick"]
    assert -1 <= float(quick["embed/test/silhouette"]) <= 1

    moved = (runs / "wider").rename(runs / "moved")
    found = {run.name: run.folder for run in read_runs(f"sqlite:///{runs}/mlflow.db")}
    moved.rename(runs / "wider")
    assert found == {name: runs / name for name in RUNS} | {"wider": None}

    line = refusal(command("list", *database, "--experiment", "nowhere"))
    assert line.endswith("choose one that it has: Default, tiny")
    assert "no run has this name" in refusal(command("compare", "quik", *database))


def _as_json(text):
    return json.dumps(list(csv.DictReader(io.StringIO(text))))


@pytest.fixture(scope="module")
def interface(runs):
    """The address of `bilevel-runs ui`, which must end cleanly."""
    options = ("ui", "--uri", str(runs / "mlflow.db"), "--port", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "bilevel_apps.cli.runs", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=runs,
    )
    try:
        address = process.stdout.readline().split()
        assert address, process.stderr.read()
        yield address[0]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert err.splitlines() == ["starting MLflow, which takes some seconds …"]
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"{address[0]}/health", timeout=5)
    finally:
        process.kill()
        process.wait()


def quoted(value):
    """A value as MLflow's interface writes it into its addresses."""
    return json.dumps(value, separators=(",", ":")).replace('"', "%22")


@pytest.mark.process
@MLFLOW_WARNINGS
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_the_interface_listens_to_this_machine_alone(interface):
    port = int(interface.rpartition(":")[2])
    assert interface == f"http://127.0.0.1:{port}"
    assert listening(port) == {"0100007F"}


def listening(port):
    """The local addresses, as the kernel writes them, at which something listens on a port."""
    rows = []
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        rows += path.read_text().splitlines()[1:] if path.exists() else []
    fields = [row.split() for row in rows]
    places = [line[1].rpartition(":") for line in fields if line[3] == "0A"]
    return {place for place, _, number in places if int(number, 16) == port}


@pytest.mark.process
@MLFLOW_WARNINGS
@pytest.mark.skipif(browser.find_browser() is None, reason="no Chromium is installed")
def test_the_interface_in_a_browser(runs, interface, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    ids = [json.loads((runs / name / "tracking.json").read_text())["run_id"] for name in RUNS]
    home = f"{interface}/#/experiments/{experiment}"
    compared = f"runs={quoted(ids)}&experiments={quoted([experiment])}"
    charted = f"metric={quoted('val/accuracy')}&plot_metric_keys={quoted(['val/accuracy'])}"
    with browser.open_browser(tmp_path / "profile") as page:
        page.open(f"{home}/runs")
        page.wait_for_texts(*RUNS)
        page.screenshot(tmp_path / "list.png")

        page.open(f"{interface}/#/compare-runs?{compared}")
        page.wait_for_texts("Comparing 4 Runs", *RUNS, "train.lr", "val/accuracy")
        page.wait_for("document.querySelector('.js-plotly-plot svg') !== null")
        page.screenshot(tmp_path / "compare.png")

        page.open(f"{interface}/#/metric?{compared}&{charted}")
        page.wait_for_texts(*(f"{name} (val/accuracy)" for name in RUNS))
        page.wait_for("document.querySelectorAll('.js-plotly-plot .scatterlayer path').length >= 4")
        page.screenshot(tmp_path / "metric.png")

        for name in ("pairs.png", "neighbours.png", "map-pca.png"):
            page.open(f"{home}/runs/{ids[0]}/artifacts/pictures/{name}")
            page.wait_for_texts(name)
            drawn = "[...document.images].some((image) => image.naturalWidth > 300)"
            page.wait_for(f"{drawn} || document.querySelector('.js-plotly-plot image') !== null")
            page.screenshot(tmp_path / f"artifact-{name}")
    kept = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(kept) == 6
    for name in kept:
        with Image.open(tmp_path / name) as shown:
            assert len(shown.convert("RGB").getcolors(maxcolors=1 << 22)) > 50, name
