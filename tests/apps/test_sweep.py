"""Sweeps: the grid and optuna's samplers, one child after the other, resumed where they stopped."""

import csv
import json
import sys
from dataclasses import replace

import pytest
import yaml

from bilevel_apps import sweep as sweeps
from bilevel_apps.cli import train as cli
from bilevel_apps.config import parse_config
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.sweep import Plan, sweep
from bilevel_apps.sweep.axes import Choices, Range, grid, parse_axes
from bilevel_apps.sweep.folder import child_name
from bilevel_apps.sweep.samplers import proposals
from bilevel_apps.sweep.table import Child, as_csv, as_lines, best_first
from bilevel_apps.system.processes import Processes
from bilevel_apps.training import loop as training
from bilevel_apps.training.loop import train

GRID = Plan(axes=("inner.steps=1,3", "train.lr=1e-3,3e-3"))


def values_of(text):
    (axis,) = parse_axes([text])
    return axis.domain


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("inner.steps=3,5,8", (3, 5, 8)),
        ("model.name=c4l, omniglot-net", ("c4l", "omniglot-net")),
        ("train.way=null,5", (None, 5)),
        ("inner.learn_lr=true,false", (True, False)),
        ("train.augment=[crop],[crop, flip],null", (["crop"], ["crop", "flip"], None)),
        ("model.name='a,b'", ("a,b",)),
        ("data=../a.h5", ("../a.h5",)),
    ],
)
def test_values_are_read_as_yaml(text, values):
    assert values_of(text) == Choices(values)


@pytest.mark.parametrize(
    ("text", "low", "high", "whole", "log"),
    [
        ("train.lr=1e-4..1e-2", 1e-4, 1e-2, False, True),
        ("train.lr=0.1..0.5", 0.1, 0.5, False, False),
        ("train.weight_decay=0..0.1", 0.0, 0.1, False, False),
        ("inner.steps=1..20", 1, 20, True, True),
        ("inner.steps=2 .. 8", 2, 8, True, False),
    ],
)
def test_ranges(text, low, high, whole, log):
    found = values_of(text)
    assert found == Range(low=low, high=high, whole=whole)
    assert found.log is log


BAD_AXES = [
    (["inner.steps"], "`axes`=inner.steps: expected KEY=VALUE,VALUE"),
    (["inner.steps="], "`axes`=inner.steps=: expected KEY=VALUE,VALUE"),
    (["=3"], "expected KEY=VALUE,VALUE"),
    (["inner.step=3"], "unknown key inner.step"),
    (["inner=3"], "unknown key inner"),
    (["inner.steps=3,3"], "a value comes twice"),
    (["inner.steps=[3"], "not valid YAML"),
    (["inner.steps=2001-01-01"], "expected numbers, words"),
    (["inner.steps=3", "inner.steps=5"], "`axes`=inner.steps: given twice"),
    (["train.lr=1e-2..1e-4"], "expected a lower bound below the upper one"),
    (["train.lr=1..1"], "expected a lower bound below the upper one"),
    (["train.lr=e..1"], "expected LOW..HIGH"),
]


@pytest.mark.parametrize(("texts", "says"), BAD_AXES, ids=range(len(BAD_AXES)))
def test_unusable_axes(texts, says):
    with pytest.raises(InputError) as refused:
        parse_axes(texts)
    assert says in str(refused.value)


def test_the_grid_is_every_combination():
    axes = parse_axes(["inner.steps=1,3", "seed=0,1,2"])
    expected = [{"inner.steps": t, "seed": s} for t in (1, 3) for s in (0, 1, 2)]
    assert list(grid(axes)) == expected
    assert list(proposals(axes, "grid", None, 0)) == expected
    with pytest.raises(InputError, match="a range has no grid"):
        list(grid(parse_axes(["train.lr=1e-4..1e-2"])))


def drawn(sampler, seed, result=lambda settings: settings["train.lr"]):
    axes = parse_axes(["train.lr=1e-4..1e-2", "inner.steps=2..8", "train.augment=[crop],null"])
    upcoming = proposals(axes, sampler, 14, seed)
    found = [next(upcoming)]
    for _ in range(13):
        found.append(upcoming.send(result(found[-1])))
    with pytest.raises(StopIteration):
        upcoming.send(0.5)
    return found


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_samplers_repeat_themselves(sampler):
    pytest.importorskip("optuna")
    found = drawn(sampler, 0)
    assert found == drawn(sampler, 0)
    assert found != drawn(sampler, 1)
    for settings in found:
        assert 1e-4 <= settings["train.lr"] <= 1e-2
        assert settings["inner.steps"] in range(2, 9)
        assert settings["train.augment"] in (["crop"], None)
    assert sum(settings["train.lr"] < 1e-3 for settings in found) in range(3, 12)  # logarithmic


def test_tpe_learns_from_results():
    pytest.importorskip("optuna")
    assert drawn("tpe", 0) != drawn("tpe", 0, result=lambda settings: -settings["train.lr"])
    assert len(drawn("tpe", 0, result=lambda _settings: None)) == 14  # all of them failed


BAD_SAMPLERS = [
    (("grid", 3), "`trials`: a grid is run whole"),
    (("random", None), "`sampler`=random: say how many settings to try with `trials`=N"),
    (("best", 3), "`sampler`=best: expected one of grid, random, tpe"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_SAMPLERS, ids=range(len(BAD_SAMPLERS)))
def test_unusable_samplers(arguments, says):
    with pytest.raises(InputError) as refused:
        proposals(parse_axes(["seed=0,1"]), *arguments, 0)
    assert says in str(refused.value)


def test_without_optuna_one_line_says_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="optuna: install it with pip install -c"):
        proposals(parse_axes(["seed=0,1"]), "tpe", 3, 0)


def test_names_suit_every_file_system():
    settings = {"train.lr": 0.00123456, "data": "../a b/ü.h5", "train.way": None}
    assert child_name(3, settings) == "3-train.lr=0.001235-data=.._a_b_.h5-train.way=None"
    assert len(child_name(1, {"data": "x" * 300})) == 100


CHILDREN = [
    Child(
        name="1-a", settings={"seed": 0, "train.lr": 0.00123456}, accuracy=0.5, ci95=0.01, step=4
    ),
    Child(name="2-b", settings={"seed": 1, "train.lr": 0.1}, error="too far, it said"),
    Child(name="3-c", settings={"seed": 2, "train.lr": 0.1}, accuracy=0.75, step=2),
]


def test_tables():
    assert [child.name for child in best_first(CHILDREN)] == ["3-c", "1-a", "2-b"]
    assert as_lines(CHILDREN) == [
        "validation      at  seed  train.lr  folder",
        "75.00 %         2   2     0.1       3-c",
        "50.00 ± 1.00 %  4   0     0.001235  1-a",
        "failed              1     0.1       2-b",
    ]
    head, *rows = csv.reader(as_csv(CHILDREN).splitlines())
    assert head == ["seed", "train.lr", "accuracy", "ci95", "step", "minutes", "name", "error"]
    assert rows[1][:5] == ["0", "0.00123456", "0.5", "0.01", "4"]
    assert rows[2][-2:] == ["2-b", "too far, it said"]


def swept(folder):
    """Return the children's records."""
    return json.loads((folder / "sweep.json").read_text())["children"]


def same_run(a, b):
    a, b = (load_checkpoint(folder / "last.safetensors") for folder in (a, b))
    return a.tensors.keys() == b.tensors.keys() and all(
        a.tensors[k].equal(b.tensors[k]) for k in a.tensors
    )


def test_a_child_is_the_training_that_it_would_be_alone(config, tmp_path):
    children = sweep(config(), tmp_path / "sweep", GRID, resume=False)
    assert [child.settings for child in children] == [
        {"inner.steps": t, "train.lr": lr} for t in (1, 3) for lr in (1e-3, 3e-3)
    ]
    names = [child.name for child in children]
    assert names[3] == "4-inner.steps=3-train.lr=0.003"
    assert all((tmp_path / "sweep" / name / "best.safetensors").exists() for name in names)
    best = train(config(inner__steps=3, train__lr=3e-3), tmp_path / "alone", resume=False)
    assert same_run(tmp_path / "alone", tmp_path / "sweep" / names[3])
    assert (children[3].accuracy, children[3].ci95) == (best.accuracy, best.ci95)
    assert swept(tmp_path / "sweep")[3]["accuracy"] == best.accuracy
    assert (tmp_path / "sweep" / "children.csv").read_text().count("\n") == 5
    assert not list(tmp_path.rglob("*.tmp"))


def test_children_whose_numbers_were_text_are_not_trained_again(config, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    sweep(config(), folder, GRID, resume=False)
    file = folder / "sweep.json"
    file.write_text(file.read_text().replace('"train.lr": 0.001', '"train.lr": "1e-3"'))
    assert file.read_text().count('"1e-3"') == 2
    count = interrupted(monkeypatch, None)
    children = sweep(config(), folder, GRID, resume=True)
    assert (count, len(children)) == ([0], 4)


def interrupted(monkeypatch, when):
    """Let Ctrl-C come before the hyper-iteration `when`, counted over all children."""
    whole, count = training._hyper_iteration, [0]

    def watch(run, batch):
        count[0] += 1
        if count[0] == when:
            raise KeyboardInterrupt
        return whole(run, batch)

    monkeypatch.setattr(training, "_hyper_iteration", watch)
    return count


def test_resumes_where_it_stopped(config, tmp_path, monkeypatch):
    whole = sweep(config(), tmp_path / "whole", GRID, resume=False)
    interrupted(monkeypatch, 11)  # the fifth of the second child, whose checkpoint has four
    folder = tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        sweep(config(), folder, GRID, resume=False)
    assert len(swept(folder)) == 1
    monkeypatch.undo()
    count = interrupted(monkeypatch, None)
    children = sweep(config(), folder, None, resume=True)
    assert count == [2 + 6 + 6]
    assert [(c.name, c.settings, c.accuracy, c.ci95, c.step) for c in children] == [
        (c.name, c.settings, c.accuracy, c.ci95, c.step) for c in whole
    ]
    for child in children:
        assert same_run(tmp_path / "whole" / child.name, folder / child.name)
    sweep(config(), folder, GRID, resume=True)
    assert count == [14]  # there was nothing left to do


DIVERGING = Plan(axes=("inner.lr=1e38,0.1", "seed=0,1"))


def test_a_failure_is_recorded_and_the_others_run(config, tmp_path, capsys):
    folder = tmp_path / "sweep"
    given = config(model__unit_length=False)
    children = sweep(given, folder, DIVERGING, resume=False)
    assert [child.error is None for child in children] == [False, False, True, True]
    assert "the heads are not finite" in children[0].error
    assert f"sweep: child {children[0].name} failed: after hyper" in capsys.readouterr().err
    assert swept(folder)[0]["error"] == children[0].error
    again = sweep(given, folder, None, resume=True)
    assert capsys.readouterr().err.count(" failed: ") == 2  # they are tried again, once
    assert [child.name for child in again] == [child.name for child in children]


def test_an_unexpected_failure_is_one_of_a_child(config, tmp_path, monkeypatch):
    whole = sweeps.train_all.train

    def run(config, out, *, resume):
        if config.seed == 0:
            raise MemoryError("no room\nleft")
        return whole(config, out, resume=resume)

    monkeypatch.setattr(sweeps.train_all, "train", run)
    children = sweep(config(), tmp_path / "s", Plan(axes=("seed=0,1",)), resume=False)
    assert [child.error for child in children] == ["MemoryError: no room left", None]


def test_equal_settings_run_once(config, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    count = interrupted(monkeypatch, None)
    plan = Plan(axes=("inner.steps=1,3",), sampler="random", trials=7)
    children = sweep(config(train__steps=2), tmp_path / "sweep", plan, resume=False)
    assert len(children) == 2
    assert count == [4]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_samples_go_on_as_if_undisturbed(config, tmp_path, monkeypatch, sampler):
    pytest.importorskip("optuna")
    given = config(train__steps=2)
    plan = Plan(axes=("train.lr=1e-4..1e-2",), sampler=sampler, trials=3)
    whole = sweep(given, tmp_path / "whole", plan, resume=False)
    interrupted(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        sweep(given, tmp_path / "sweep", plan, resume=False)
    monkeypatch.undo()
    children = sweep(given, tmp_path / "sweep", plan, resume=True)
    assert [c.settings for c in children] == [c.settings for c in whole]
    assert [c.accuracy for c in children] == [c.accuracy for c in whole]
    more = Plan(axes=plan.axes, sampler=sampler, trials=4)
    longer = sweep(given, tmp_path / "sweep", more, resume=True)
    assert [c.settings for c in longer[:3]] == [c.settings for c in whole]
    assert len(longer) == 4
    kept = (tmp_path / "sweep" / "sweep.json").read_bytes()
    with pytest.raises(InputError, match="has tried 4 settings: give `trials`=4 or more, not 2"):
        sweep(given, tmp_path / "sweep", replace(plan, trials=2), resume=True)
    assert (tmp_path / "sweep" / "sweep.json").read_bytes() == kept


BAD_SWEEPS = [
    (["--sweep", "inner.step=3"], "unknown key inner.step"),
    (["--sweep", "inner.steps=3,x"], "inner.steps: input should be a valid integer, found 'x'"),
    (["--sweep", "inner.steps=0.5..3", "--sampler", "tpe", "--trials", 2], "inner.steps: input"),
    (["--sweep", "train.lr=1e-4..1e-2"], "a range has no grid"),
    (["--sweep", "model.name=resnet,c4l"], "no model 'resnet': choose one of"),
    (["--sweep", "episode.way=13,5"], "has 12 classes"),
    (["--sweep", "seed=0,1", "--data", "missing.h5"], "missing.h5"),
    (["--sweep", "seed=0,1", "--trials", 3], "--trials: a grid is run whole"),
    (["--sweep", "seed=0,1", "--trials", 0], "'--trials'"),
    (["--sweep", "seed=0,1", "--sampler", "grill"], "--sampler grill: expected one of"),
    (["--sampler", "tpe"], "--sampler and --trials: give --sweep"),
]


@pytest.fixture
def config_file(tmp_path, settings):
    def write(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings(**changes)))
        return path

    return write


@pytest.mark.parametrize(("arguments", "says"), BAD_SWEEPS, ids=range(len(BAD_SWEEPS)))
def test_unusable_sweeps(command, config_file, tmp_path, arguments, says):
    found = command("train", config_file(), "--out", tmp_path / "sweep", *arguments)
    assert found.status == 2
    assert says in found.error
    assert not (tmp_path / "sweep").exists()


def test_sweeps_at_the_command_line(command, config_file, tmp_path):
    folder = tmp_path / "sweep"
    words = ["train", config_file(model__unit_length=False, train__steps=2), "--out", folder]
    words += ["--sweep", "inner.lr=0.1,1e38", "--sweep", "seed=0,1"]
    found = command(*words)
    assert found.status == 1
    lines = found.out.splitlines()
    assert lines[0].split() == ["validation", "at", "inner.lr", "seed", "folder"]
    assert len(lines) == 6
    accuracies = [float(line.split()[0]) for line in lines[1:3]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [line.split()[0] for line in lines[3:5]] == ["failed", "failed"]
    best = lines[1].split()[-1]
    assert lines[5] == f"evaluate the best with: bilevel-eval {folder / best}"
    error = found.err.splitlines()[-1]
    assert error.startswith("error: 2 of 4 children failed: 3-inner.lr=1e+38-seed=0, 4-inner.lr=1e")
    assert command("eval", folder / best, "--episodes", 2).status == 0
    before = (folder / "sweep.json").read_bytes()
    for more, says in (
        ([], f"error: {folder}: holds a sweep already: add --resume, or choose another --out"),
        (["--resume", "--sweep", "inner.steps=3"], f"error: {folder}: its sweep is --sweep inner"),
        (["--resume", "--set", "train.steps=3"], "the sweep has train.steps=2, but train.steps=3"),
        (["--resume", "--sampler", "tpe", "--trials", 3], f"error: {folder}: its sweep is --sweep"),
    ):
        refused = command(*words, *more)
        assert refused.status == 2
        assert refused.error.startswith(says) or says in refused.error
    assert (folder / "sweep.json").read_bytes() == before
    again = command("train", "--out", folder, "--resume")
    assert (again.status, again.out) == (1, found.out)
    (folder / "sweep.json").write_text("{")
    damaged = command("train", "--out", folder, "--resume")
    assert damaged.error.startswith(f"error: {folder / 'sweep.json'}: damaged, or not a sweep")


def test_a_run_and_a_sweep_do_not_mix(command, trained, tmp_path):
    words = ["train", "--out", trained, "--sweep", "seed=0,1"]
    for more in ([], ["--resume"]):
        found = command(*words, *more)
        assert found.status == 2
        assert found.error.startswith(f"error: {trained}: holds a run of bilevel-train")
    found = command("train", "--out", tmp_path / "none", "--resume")
    assert "holds no run to resume" in found.error


def test_under_torchrun_sweeps_are_refused(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "launched", lambda _environment: Processes(rank=1, size=2))
    with pytest.raises(InputError, match="--sweep under torchrun: a sweep is one process"):
        cli.train(config_file(), out=tmp_path / "sweep", sweep=["seed=0,1"])
    assert not (tmp_path / "sweep").exists()


def test_a_record_that_cannot_be_written(config, tmp_path, monkeypatch):
    def full(*_arguments):
        raise RunError("no space left")

    monkeypatch.setattr("bilevel_apps.sweep.folder.write_text", full)
    with pytest.raises(RunError, match="no space left"):
        sweep(config(), tmp_path / "sweep", GRID, resume=False)


def record(**changes):
    plan = {"axes": ["seed=0,1"], "sampler": "grid", "trials": None}
    child = {"name": "1-seed=0", "settings": {"seed": 0}, "accuracy": 0.5}
    whole = {"format": "bilevel-sweep-1", "plan": plan, "settings": {}, "children": [child]}
    for key, value in changes.items():
        where, _, entry = key.partition("__")
        at = whole[where] if where != "child" else child
        at.update({entry: value})
    return json.dumps(whole)


DAMAGED = ["[]", '{"format": "bilevel-sweep-1"}', '{"format": "x"}', "{"]
DAMAGED += [record(child__name=name) for name in ("../other", "..", "/tmp/x", "", 3)]
DAMAGED += [record(child__accuracy="high"), record(child__settings=3)]
DAMAGED += [record(plan__axes="seed=0,1"), record(plan__trials="many"), record(plan__sampler=[])]


@pytest.mark.parametrize("document", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_records(tmp_path, document):
    (tmp_path / "sweep.json").write_text(document)
    with pytest.raises(InputError, match="damaged, or not a sweep of this version"):
        sweep(parse_config({}, "test"), tmp_path, None, resume=True)
