"""How a run ends: by its hyper-iterations, its minutes or its patience, and says which."""

import shutil

import pytest
import torch

from bilevel_apps.config import TrainSection, parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.record import Ending
from bilevel_apps.training import loop as module
from bilevel_apps.training.loop import train
from bilevel_apps.training.stopping import Stopwatch, finished, out_of_patience


def test_a_stopwatch_counts_on():
    times = iter([100.0, 103.0, 110.0])
    watch = Stopwatch(before=7.0, now=lambda: next(times))
    assert watch.seconds() == 10.0
    assert watch.seconds() == 17.0


@pytest.mark.parametrize(
    ("minutes", "step", "seconds", "ending"),
    [
        (None, 9, 1e9, None),
        (None, 10, 0.0, Ending.STEPS),
        (0.5, 9, 29.9, None),
        (0.5, 9, 30.0, Ending.MINUTES),
        (0.5, 10, 30.0, Ending.STEPS),
    ],
)
def test_what_is_used_up(minutes, step, seconds, ending):
    assert finished(TrainSection(steps=10, minutes=minutes), step, seconds) is ending


@pytest.mark.parametrize(
    ("patience", "step", "ending"),
    [(None, 10_000, None), (3, 250, None), (3, 749, None), (3, 1000, Ending.PATIENCE)],
)
def test_patience_counts_validations(patience, step, ending):
    assert out_of_patience(TrainSection(patience=patience, validate_every=250), step, 250) is ending


def last(folder):
    return load_checkpoint(folder / "last.safetensors")


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def resume(folder, **train_changes):
    given = parse_config({"train": train_changes} if train_changes else {}, "test")
    return train(RunFolder(folder).continued(given), folder, resume=True)


def script(monkeypatch, scores):
    """Let the validation after so many hyper-iterations come to these."""
    whole = module._validate

    def scripted(training, tracker):
        found = module.Score(accuracy=scores[training.step], ci95=0.0, episodes=4)
        with monkeypatch.context() as scored:
            scored.setattr(module, "score_learner", lambda *_, **__: found)
            return whole(training, tracker)

    monkeypatch.setattr(module, "_validate", scripted)


def test_minutes_end_a_run_cleanly(tmp_path, config, trained, capsys):
    folder = tmp_path / "run"
    best = train(config(train__minutes=1e-9), folder, resume=False)
    assert (
        "ended at hyper-iteration 1 of 6: train.minutes=1e-09 are over" in capsys.readouterr().err
    )
    record = last(folder).record
    assert (record["step"], record["best_step"], record["ended"]) == (1, 1, "minutes")
    assert record["best_accuracy"] == best.accuracy
    assert record["seconds"] > 0
    before = contents(folder)
    assert resume(folder) is None  # there is no more time
    assert contents(folder) == before
    assert "are over" in capsys.readouterr().err


def test_more_minutes_go_on_to_the_same_weights(tmp_path, config, trained):
    folder = tmp_path / "run"
    train(config(train__minutes=1e-9), folder, resume=False)
    taken = last(folder).record["seconds"]
    resume(folder, minutes=60.0)
    found, whole = last(folder), last(trained)
    assert found.record["ended"] == "steps"
    assert found.record["seconds"] > taken
    assert all(torch.equal(found.tensors[k], whole.tensors[k]) for k in whole.tensors)


@pytest.mark.parametrize("schedule", ["constant", "paper"])
def test_more_hyper_iterations_go_on_to_the_same_weights(tmp_path, config, schedule):
    short, whole = tmp_path / "short", tmp_path / "whole"
    chosen = {"train__schedule": schedule, "train__average": 0.5}
    train(config(**chosen, train__steps=3), short, resume=False)
    train(config(**chosen, train__steps=7), whole, resume=False)
    assert last(short).record["ended"] == "steps"
    resume(short, steps=7)
    found, expected = last(short), last(whole)
    assert (found.record["ended"], found.record["step"]) == ("steps", 7)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[k], expected.tensors[k]) for k in expected.tensors)
    assert RunFolder(short).load_config().train.steps == 7


@pytest.mark.parametrize("steps", [4, 5])
def test_what_a_lengthened_run_shares_with_a_long_one(tmp_path, config, monkeypatch, steps):
    """With validations every 2: the best checkpoint too, where the shorter run ended on one."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    scores = {2: 0.5, 4: 0.6, 5: 0.9, 6: 0.4, 8: 0.7}
    script(monkeypatch, scores)
    train(config(train__steps=steps), folder, resume=False)
    resume(folder, steps=8)
    train(config(train__steps=8), whole, resume=False)
    found, expected = last(folder), last(whole)
    assert all(torch.equal(found.tensors[k], expected.tensors[k]) for k in expected.tensors)
    same = found.record == expected.record
    best = [load_checkpoint(f / "best.safetensors").record["step"] for f in (folder, whole)]
    assert (same, best) == ((True, [8, 8]) if steps == 4 else (False, [5, 8]))


def test_patience_that_ran_out_as_the_run_ended_ends_a_longer_one(tmp_path, config, monkeypatch):
    script(monkeypatch, {2: 0.5, 4: 0.4, 6: 0.4})
    folder, chosen = tmp_path / "run", {"train__patience": 2}
    train(config(**chosen, train__steps=6), folder, resume=False)
    assert last(folder).record["ended"] == "steps"
    assert resume(folder, steps=50) is None  # a run of 50 would have ended here
    assert last(folder).record["step"] == 6


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_a_schedule_that_follows_the_length_fixes_it(tmp_path, config, schedule, capsys):
    folder = tmp_path / "run"
    train(config(train__schedule=schedule), folder, resume=False)
    with pytest.raises(InputError, match=r"has train\.steps=6, but train\.steps=7 was given"):
        resume(folder, steps=7)
    capsys.readouterr()
    assert resume(folder) is None
    hint = f"set train.steps under a new --out (the {schedule} schedule follows it)"
    assert hint in capsys.readouterr().err


def test_fewer_hyper_iterations_than_are_done_are_refused(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = contents(folder)
    told = r"has 6 hyper-iterations behind it, and train\.steps is 5"
    with pytest.raises(InputError, match=told):
        resume(folder, steps=5)
    assert contents(folder) == before


def test_time_before_a_resume_counts(tmp_path, config, monkeypatch):
    """On a clock that gains two seconds whenever it is looked at."""
    now = iter(range(0, 10**6, 2))
    whole, prepare = module._hyper_iteration, module.prepare

    def clocked(*arguments):
        training = prepare(*arguments)
        training.clock = Stopwatch(now=lambda: float(next(now)))
        return training

    def cut(training, batch):
        if training.step == 2:
            raise KeyError("killed")
        return whole(training, batch)

    monkeypatch.setattr(module, "prepare", clocked)
    folder, chosen = tmp_path / "run", config(train__minutes=0.2)
    with monkeypatch.context() as killed:
        killed.setattr(module, "_hyper_iteration", cut)
        with pytest.raises(KeyError):
            train(chosen, folder, resume=False)
    taken = last(folder).record["seconds"]
    assert 4 <= taken < 10
    resume(folder)
    record = last(folder).record
    assert record["ended"] == "minutes"
    assert 12 <= record["seconds"] < 18
    assert 2 < record["step"] < chosen.train.steps  # a look a hyper-iteration, and a few to save


def test_a_limit_that_comes_later_says_that_it_counts_from_there(tmp_path, trained, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    resume(folder, steps=8, minutes=60.0)
    told = "warning: train.minutes=60 counts from here: what 6 hyper-iterations took without"
    assert told in capsys.readouterr().err
    resume(folder, steps=10)
    assert "counts from here" not in capsys.readouterr().err


def test_patience_ends_a_run(tmp_path, config, monkeypatch, capsys):
    constant = module.Score(accuracy=0.5, ci95=0.0, episodes=4)
    monkeypatch.setattr(module, "score_learner", lambda *_, **__: constant)
    folder = tmp_path / "run"
    chosen = config(train__steps=100, train__patience=2)
    assert train(chosen, folder, resume=False) == constant
    err = capsys.readouterr().err
    assert "ended at hyper-iteration 6 of 100: no better validation in train.patience=2" in err
    assert last(folder).record["ended"] == "patience"
    assert load_checkpoint(folder / "best.safetensors").record["step"] == 2
    before = contents(folder)
    assert resume(folder) is None
    assert contents(folder) == before


def test_patience_survives_a_kill(tmp_path, config, monkeypatch):
    script(monkeypatch, {2: 0.5, 4: 0.4, 6: 0.6, 8: 0.6, 10: 0.1, 12: 0.9})
    whole = module._validate

    def cut(training, tracker):
        if training.step == killed:
            raise KeyError("killed")
        return whole(training, tracker)

    monkeypatch.setattr(module, "_validate", cut)
    chosen = config(train__steps=50, train__patience=2)
    killed = None
    train(chosen, tmp_path / "whole", resume=False)
    assert last(tmp_path / "whole").record["step"] == 10
    for killed in (4, 8, 10):
        folder = tmp_path / str(killed)
        with pytest.raises(KeyError):
            train(chosen, folder, resume=False)
        killed = None
        resume(folder)
        for name in ("last.safetensors", "best.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_steps_end_a_run(trained, tmp_path, capsys):
    assert last(trained).record["ended"] == "steps"
    assert "seconds" not in last(trained).record  # equal runs have equal files
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    resume(folder)
    assert "the run ended: all 6 hyper-iterations are done" in capsys.readouterr().err
