"""The recorded results: the tables say what the records say, and the records say enough."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from tools.results import BEGIN, END, read_records, results_page, with_table
from tools.results.__main__ import main

from bilevel_apps.errors import InputError

ROOT = Path(__file__).parents[1]
RECORDS, PAGE, README = ROOT / "docs" / "records", ROOT / "docs" / "results.md", ROOT / "README.md"

ITEM = {
    "item": "table9",
    "title": "Nines",
    "scale": "quick",
    "rows": [{"T": "1", "error": 0.125}, {"T": "2", "error": None}],
    "claims": [{"text": "it falls", "holds": False, "found": "0.125"}],
    "settings": {"seeds": 2},
    "cost": {"seconds of training": ["1.5", "2.5"], "seconds": 90.0},
    "differs": ["Everything."],
    "run": {
        "command": "bilevel-paper table9 --data omniglot.h5 --out DIR",
        "machine": "2 cores of one kind, Linux, 1 thread",
        "threads": 1,
        "versions": "Python 3.11",
    },
}
SCORE = {
    "format": "bilevel-record-1",
    "data": "omniglot",
    "network": "omniglot-net",
    "way": 5,
    "shot": 1,
    "query": 15,
    "split": "test",
    "rotations": True,
    "episodes": 600,
    "accuracy": 0.98765,
    "ci95": 0.0021,
    "upright": {"accuracy": 0.98, "ci95": 0.003},
    "norm": "ghost",
    "transductive": False,
    "steps": 5,
    "paper": 98.6,
    "train": "bilevel-train --preset omniglot-5way-1shot --data omniglot.h5 --out runs/a",
    "evaluate": "bilevel-eval DIR --data omniglot.h5",
    "training_seed": 0,
    "seed": 0,
    "hyper_iterations": 1500,
    "chosen_at": 1250,
    "seconds": 540.0,
    "machine": "2 cores of one kind, Linux, 2 threads",
    "versions": "Python 3.11",
    "checkpoint_sha256": "a" * 64,
    "split_sha256": "b" * 64,
}


@pytest.fixture
def folder(tmp_path):
    """A copy of a project: two records, a README with the marks, and the page."""
    (tmp_path / "docs" / "records").mkdir(parents=True)
    for name, document in (("omniglot-quick-5way-1shot", SCORE), ("item", ITEM)):
        path = tmp_path / "docs" / "records" / f"{name}.json"
        path.write_text(json.dumps(document), "utf-8")
    (tmp_path / "README.md").write_text(f"# x\n\n{BEGIN}\n{END}\n\ny\n", "utf-8")
    return tmp_path


def record_of(folder):
    return folder / "docs" / "records" / "omniglot-quick-5way-1shot.json"


@pytest.fixture
def results(monkeypatch, capsys, folder):
    """Run the command in that folder; returns (status, stderr)."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["results", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


def test_the_tables_are_what_the_records_say():
    records = read_records(RECORDS)
    assert PAGE.read_text("utf-8") == results_page(records)
    readme = README.read_text("utf-8")
    assert with_table(readme, records, README) == readme


def test_what_is_written(folder, results):
    assert results("write") == (0, "")
    page = (folder / "docs" / "results.md").read_text("utf-8")
    for expected in (
        "| omniglot, 5-way 1-shot | omniglot-5way-1shot | 98.77 ± 0.21 | 98.00 ± 0.30 | 98.6 | "
        "ghost, inductive | 600 of test, rotated and upright | 0 | 9 min on 2 cores of one kind, "
        "Linux, 2 threads | 5 | 1500 | `aaaaaaaaaaaa` |",
        f"`{'a' * 64}`",
        "```\n" + SCORE["train"] + "\nbilevel-eval runs/a --data omniglot.h5\n```",
        "on 2 cores of one kind, Linux, 2 threads in 9.0 minutes",
        "(records/omniglot-quick-5way-1shot.json)",
        "### table9, quick: Nines",
        "in 2 minutes here",
        "- seeds: 2\n\n- Everything.",
        "| T | error |\n| --- | --- |\n| 1 | 0.125 |\n| 2 |  |",
        "- FAILS: it falls (0.125)",
        "seconds of training: 1.5 + 2.5",
        "```\n" + ITEM["run"]["command"] + "\n```",
    ):
        assert expected in page
    readme = (folder / "README.md").read_text("utf-8")
    assert readme.startswith(f"# x\n\n{BEGIN}\n| task |")
    row = "| omniglot, 5-way 1-shot | `omniglot-5way-1shot` | 98.77 ± 0.21 | 98.6 | 9 |"
    assert row in readme
    assert readme.endswith(f"|\n{END}\n\ny\n")
    assert results("check") == (0, "")


@pytest.mark.parametrize(
    ("key", "value"),
    [("accuracy", 0.98664), ("training_seed", 1), ("seconds", 600.0), ("machine", "another one")],
)
def test_a_record_that_changes_is_noticed(folder, results, key, value):
    results("write")
    changed = SCORE | {key: value}
    record_of(folder).write_text(json.dumps(changed), "utf-8")
    status, err = results("check")
    assert status == 1
    (line,) = err.splitlines()
    assert line.startswith("error: docs/results.md: is not what docs/records says")


@pytest.mark.parametrize("name", ["docs/results.md", "README.md"])
def test_a_table_that_changes_is_noticed(folder, results, name):
    results("write")
    text = (folder / name).read_text("utf-8")
    assert "98.77" in text
    (folder / name).write_text(text.replace("98.77", "99.77"), "utf-8")
    status, err = results("check")
    assert status == 1
    assert f"error: {name}: is not what" in err


def test_shifts_stand_beside_the_preset(folder, results):
    record_of(folder).write_text(json.dumps(SCORE | {"shifts": 1}), "utf-8")
    results("write")
    row = (
        "| omniglot, 5-way 1-shot | `omniglot-5way-1shot`, `--shifts 1` | 98.77 ± 0.21 | 98.6 | 9 |"
    )
    assert row in (folder / "README.md").read_text("utf-8")


def test_a_training_that_is_no_preset_and_has_no_time(folder, results):
    train = SCORE["train"] + " --set train.lr=1e-2"
    changed = SCORE | {"train": train, "seconds": None, "upright": None, "hyper_iterations": None}
    record_of(folder).write_text(json.dumps(changed), "utf-8")
    results("write")
    page = (folder / "docs" / "results.md").read_text("utf-8")
    assert "| omniglot-5way-1shot, changed | 98.77 ± 0.21 |  | 98.6 |" in page
    assert "| 0 | 2 cores of one kind, Linux, 2 threads | 5 |  |" in page
    assert "2 threads; Python 3.11; the checkpoint of hyper-iteration 1250 has" in page


def test_a_record_that_is_gone_is_noticed(folder, results):
    results("write")
    (folder / "docs" / "records" / "item.json").unlink()
    assert results("check")[0] == 1
    shutil.rmtree(folder / "docs" / "records")
    status, err = results("check")
    assert status == 2
    assert "docs/records: no records (*.json) here" in err


def without(document, key):
    return {k: v for k, v in document.items() if k != key}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        *((without(SCORE, key), f"bad.json: {key}: field required") for key in SCORE),
        *(
            (without(ITEM, key), f"bad.json: {key}: field required")
            for key in without(ITEM, "item")
        ),
        (SCORE | {"more": 1}, "bad.json: more: extra inputs"),
        (SCORE | {"accuracy": 98.7}, "bad.json: accuracy: input should be less"),
        (SCORE | {"checkpoint_sha256": "abc"}, "bad.json: checkpoint_sha256: string should match"),
        (SCORE | {"machine": "a | b"}, "bad.json: machine: string should match"),
        (SCORE | {"train": "x --data /data/o.h5"}, "'x --data /data/o.h5' names a place"),
        (SCORE | {"evaluate": "bilevel-eval ~/run"}, "names a place on a machine"),
        (ITEM | {"settings": {"a": ["/tmp/x"]}}, "names a place on a machine"),
        (
            ITEM | {"cost": {"seconds": "90"}},
            "bad.json: cost: value error, expected seconds",
        ),
        (ITEM | {"rows": []}, "bad.json: rows: list should have at least 1 item"),
        (ITEM | {"run": without(ITEM["run"], "command")}, "bad.json: run.command: field required"),
        ([], "bad.json: expected a record, found list"),
    ],
)
def test_a_record_that_cannot_be_used(tmp_path, document, message):
    (tmp_path / "bad.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(InputError) as refused:
        read_records(tmp_path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_record_that_is_not_json(tmp_path):
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match=r"bad\.json: expected a record, found something"):
        read_records(tmp_path)


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + END])
def test_a_readme_without_the_marks(text):
    with pytest.raises(InputError, match="expected the lines"):
        with_table(text, {}, Path("README.md"))
