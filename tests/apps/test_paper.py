"""`bilevel-paper`: what an item writes, what is not done twice, and how it fails."""

import csv
import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from bilevel_apps.cli import paper as command_line
from bilevel_apps.drawing.style import new_figure
from bilevel_apps.errors import InputError
from bilevel_apps.paper import ITEMS, Claim, Item, Report, Scale, load_item
from bilevel_apps.paper.harness.make import ItemRequest, run_item
from bilevel_apps.paper.harness.overview import total_seconds
from bilevel_apps.paper.harness.summary import summary
from bilevel_core import DivergenceError

FILES = {"figure1.png", "figure1.svg", "figure1.csv", "figure1-details.csv"} | {
    "figure1.json",
    "figure1.md",
}


def picture():
    figure = new_figure(2, 2)
    figure.subplots().plot([1, 2])
    return figure


def made(calls, *, settings=None, fails_at=None, holds=True, draw=picture):
    """An item whose part of seed s comes to s²; `calls` gets the seeds that are computed."""
    settings = settings or {"power": 2, "bounds": (0, 1)}

    def compute(seed):
        if seed == fails_at:
            raise DivergenceError("the inner run diverged")
        calls.append(seed)
        return {"square": seed**2, "path": (seed, seed)}

    def run(work):
        parts = work.by_seed(compute, settings)
        total = sum(part.result["square"] for part in parts)
        rows = [{"sum": total / 3, "paper": None}]
        claim = Claim(text="squares add up", holds=holds, found=f"to {total}")
        return Report(
            rows=rows,
            details=[{"seed": n, **part.result} for n, part in enumerate(parts)],
            claims=[claim],
            picture=draw,
            settings=settings,
            cost={"squares": len(parts), "seconds": 1.5},
            differs=["It is not in the paper."],
            metrics={"sum": total},
        )

    return Item(
        name="figure1", title="squares", paper="Said.", seeds=dict.fromkeys(Scale, 4), run=run
    )


def request(out, **options):
    return ItemRequest(out=out, track=False, **options)


@pytest.fixture
def bilevel_paper(monkeypatch, capsys):
    """Run the command in this process; returns (status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bilevel-paper", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return ended.value.code, *capsys.readouterr()

    return run


def names(folder):
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_what_an_item_writes(tmp_path):
    calls = []
    report, document = run_item(made(calls), request(tmp_path / "out"))
    assert calls == [0, 1, 2, 3]
    assert names(tmp_path / "out") == FILES
    saved = json.loads((tmp_path / "out" / "figure1.json").read_text("utf-8"))
    assert saved == {
        key: value for key, value in json.loads(json.dumps(document)).items() if key != "files"
    }
    with (tmp_path / "out" / "figure1.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"sum": repr(14 / 3), "paper": ""}]
    with (tmp_path / "out" / "figure1-details.csv").open(newline="") as file:
        assert [row["square"] for row in csv.DictReader(file)] == ["0", "1", "4", "9"]
    text = (tmp_path / "out" / "figure1.md").read_text("utf-8")
    for expected in (
        "# figure1: squares",
        "Said.",
        "| sum | paper |\n| --- | --- |\n| 4.667 |  |",
        "- holds: squares add up (to 14)",
        "- bounds: 0, 1",
        "- squares: 4",
        "bilevel-paper figure1 --scale quick --seeds 4 --out DIR",
        "- It is not in the paper.",
        "(figure1.png)",
    ):
        assert expected in text
    assert report.claims[0].holds


def test_pictures_are_whole_and_the_same_each_time(tmp_path):
    for folder in ("a", "b"):
        run_item(made([]), request(tmp_path / folder))
    for name in ("figure1.png", "figure1.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "figure1.png").read_bytes()[:4] == b"\x89PNG"
    root = ElementTree.parse(tmp_path / "a" / "figure1.svg").getroot()
    assert root.tag.endswith("svg")


def test_what_is_recorded_is_not_done_again(tmp_path):
    calls = []
    item = made(calls)
    run_item(item, request(tmp_path, seeds=2))
    first = (tmp_path / "figure1.csv").read_bytes()
    run_item(item, request(tmp_path, seeds=2))
    assert calls == [0, 1]
    assert (tmp_path / "figure1.csv").read_bytes() == first
    run_item(item, request(tmp_path, seeds=3))
    assert calls == [0, 1, 2]
    run_item(item, request(tmp_path, seeds=1, scale=Scale.FULL))
    assert calls == [0, 1, 2, 0]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "bilevel-paper-0"}', "\x00"])
def test_a_damaged_record_is_made_again(tmp_path, content):
    calls = []
    run_item(made(calls), request(tmp_path))
    (tmp_path / "figure1" / "quick" / "seed-2.json").write_text(content)
    run_item(made(calls), request(tmp_path))
    assert calls == [0, 1, 2, 3, 2]


def test_a_record_of_other_settings_is_made_again(tmp_path):
    calls = []
    run_item(made(calls), request(tmp_path, seeds=1))
    run_item(made(calls, settings={"power": 2, "bounds": (0, 2)}), request(tmp_path, seeds=1))
    assert calls == [0, 0]


def test_a_failure_keeps_the_parts_before_it(tmp_path, bilevel_paper, monkeypatch):
    calls = []
    monkeypatch.setattr(command_line, "load_item", lambda _: made(calls, fails_at=2))
    status, out, err = bilevel_paper("figure1", "--no-track", "--out", tmp_path)
    assert (status, out) == (1, "")
    assert err == "error: figure1: the inner run diverged; the parts that were done are kept\n"
    assert names(tmp_path) == set()
    monkeypatch.setattr(command_line, "load_item", lambda _: made(calls))
    status, out, _ = bilevel_paper("figure1", "--no-track", "--out", tmp_path)
    assert status == 0
    assert calls == [0, 1, 2, 3]
    assert names(tmp_path) == FILES


def test_a_picture_that_fails_leaves_no_file(tmp_path):
    def broken():
        raise ZeroDivisionError

    run_item(made([]), request(tmp_path))
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    with pytest.raises(Exception, match="figure1"):
        run_item(made([], draw=broken), request(tmp_path, seeds=2))
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_claim_that_fails_ends_with_status_1_and_all_files(tmp_path, bilevel_paper, monkeypatch):
    monkeypatch.setattr(command_line, "load_item", lambda _: made([], holds=False))
    status, out, err = bilevel_paper("figure1", "--no-track", "--out", tmp_path)
    assert status == 1
    last = "error: 1 of 1 claims did not hold: squares add up: see figure1.md"
    assert err.splitlines()[-1] == last
    assert "FAILS: squares add up (to 14)" in out
    assert names(tmp_path) == FILES


def test_json_is_one_object(tmp_path, bilevel_paper, monkeypatch):
    monkeypatch.setattr(command_line, "load_item", lambda _: made([]))
    status, out, _ = bilevel_paper("figure1", "--no-track", "--json", "--out", tmp_path)
    assert status == 0
    document = json.loads(out)
    assert document["claims"] == [{"text": "squares add up", "holds": True, "found": "to 14"}]
    assert {path.rpartition("/")[2] for path in document["files"]} == FILES


def test_all_of_them_and_a_page(tmp_path, bilevel_paper, monkeypatch):
    """One that fails stops no other, and one whose store is not given is left out."""
    needs = replace(made([]), name="needs", data=("omniglot",))
    fails = replace(made([], fails_at=0), name="fails")
    false = replace(made([], holds=False), name="false")
    items = {"figure1": made([]), "needs": needs, "fails": fails, "false": false}
    monkeypatch.setattr(command_line, "ITEMS", dict.fromkeys(items, ""))
    monkeypatch.setattr(command_line, "load_item", items.get)
    status, out, err = bilevel_paper("all", "--no-track", "--out", tmp_path)
    assert status == 1
    lines = dict(line.split(maxsplit=1) for line in out.splitlines()[1:-1])
    assert lines["figure1"].startswith("1 of 1 claims hold")
    assert lines["needs"].startswith("left out: it takes a store, --data")
    assert lines["fails"].startswith("failed: fails: the inner run diverged")
    assert lines["false"].startswith("0 of 1 claims hold")
    assert err.splitlines()[-1].startswith("error: fails, false: failed, or a claim did not hold")
    page = (tmp_path / "all.md").read_text("utf-8")
    assert "## [figure1](figure1.md): squares\n\n![squares](figure1.png)\n\n- holds: squ" in page
    assert "- FAILS: squares add up (to 14)" in page
    costs = [{"seconds": 3.0, "shared": "a"}, {"seconds": 3.0, "shared": "a"}, {"seconds": 2.0}]
    assert total_seconds(costs) == 5


def test_the_list_names_every_item(bilevel_paper):
    status, out, _ = bilevel_paper("list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(ITEMS)


def test_every_item_is_complete():
    for name in ITEMS:
        item = load_item(name)
        assert item.name == name
        assert item.seeds.keys() == set(Scale)
        assert item.paper.strip()


def test_an_unknown_item():
    with pytest.raises(InputError, match="table9: no such item: expected one of table2"):
        load_item("table9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9", "--out", "x"], "table9"),
        (["figure1"], "--out"),
        (["table3", "--out", "x"], "no data: give --data FILE.h5"),
        (["table4", "--out", "x", "--only", "nothing"], "--only nothing: table4 has no such part"),
        (["table5", "--out", "x", "--set", "seed=1"], "table5 trains no network"),
        (["table5", "--out", "x", "--run", "y"], "table5 shows no run"),
        (["figure1", "--out", "x", "--seeds", "0"], "--seeds"),
        (["figure1", "--out", "x", "--scale", "huge"], "--scale"),
    ],
)
def test_what_cannot_be_meant_is_one_line(bilevel_paper, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = bilevel_paper(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(bilevel_paper, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = bilevel_paper("figure1", "--no-track", "--out", tmp_path / "file" / "out")
    assert status == 2
    (line,) = err.splitlines()
    assert "is not a folder" in line


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend
def test_tracking_continues_one_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for _ in range(2):
        run_item(made([]), replace(request(tmp_path / "out", seeds=2), track=True))
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("paper")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "figure1-quick"
    assert run.data.metrics["sum"] == 1
    assert run.data.tags["claim.1"] == "holds: squares add up (to 1)"
    assert run.data.params["power"] == "2"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == FILES


def test_spread():
    found = summary([1.0, 2.0, 6.0])
    assert (found.mean, found.median, found.lowest, found.highest) == (3, 2, 1, 6)
    # Student's t of two degrees of freedom, as tables have it.
    assert found.ci95 == pytest.approx(4.302653 * 7**0.5 / 3**0.5)
    assert str(found) == "3 ± 6.6"
    assert summary([4.0]).ci95 is None
    assert str(summary([4.0])) == "4"
