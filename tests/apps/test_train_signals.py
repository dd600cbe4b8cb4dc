"""A signal to a training: it saves and ends soon, and what it cut short is made again."""

import os
import signal
import time

import pytest
import torch
import yaml

from apps.test_distributed import Torchrun, together
from bilevel_apps.runs.build import episode_sampler, make_learner
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.scoring import feature_table
from bilevel_apps.scoring import heads as head_scores
from bilevel_apps.scoring.learner import learner_accuracies
from bilevel_apps.system.signals import Interrupted
from bilevel_apps.tracking.tracker import Tracker
from bilevel_apps.training import loop as module
from bilevel_apps.training.loop import train
from bilevel_data import open_store
from bilevel_meta import evaluation
from bilevel_meta.methods.hyper_representation import HyperRepresentation

CPU = torch.device("cpu")
# What of a validation is done in parts, where an image's features depend on the episode and where
# they do not; and what does one part.
PARTS = {
    "images": ("ghost", feature_table, "_encoded"),
    "heads": ("ghost", head_scores, "_logits"),
    "episodes": ("support", HyperRepresentation, "accuracies"),
}


def record(folder):
    return load_checkpoint(folder / "last.safetensors").record


def contents(folder):
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("last", "best")}


def resume(folder):
    return train(RunFolder(folder).load_config(), folder, resume=True)


@pytest.fixture
def small_parts(monkeypatch):
    """Let each part of a validation be an episode, or the images of one."""
    for owner in (evaluation, feature_table):
        monkeypatch.setattr(owner, "BATCH_PIXELS", 20 * 16 * 16)
    monkeypatch.setattr(head_scores, "FEATURE_BYTES", 1)


@pytest.fixture
def told(monkeypatch):
    """Return what a tracker is told in a call, but for speeds, beside what the call returns."""
    entries = []

    def note(_tracker, step, values):
        kept = [(key, step, value) for key, value in values.items() if "speed/" not in key]
        entries.extend(kept)

    def during(work):
        entries.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tracker, "metrics", note)
            result = work()
        return list(entries), result

    return during


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, config, trained, monkeypatch, number):
    folder = tmp_path / "run"
    whole = module._hyper_iteration

    def signalled(training, batch):
        if training.step == 2:
            os.kill(os.getpid(), number)
        return whole(training, batch)

    monkeypatch.setattr(module, "_hyper_iteration", signalled)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(config(), folder, resume=False)
    assert signal.getsignal(number) == before
    assert record(folder)["step"] == 3
    monkeypatch.undo()
    resume(folder)
    assert contents(folder) == contents(trained)


def test_a_second_signal_stops_at_once(tmp_path, config, monkeypatch):
    whole = module._hyper_iteration

    def signalled(training, batch):
        if training.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(training, batch)

    monkeypatch.setattr(module, "_hyper_iteration", signalled)
    with pytest.raises(KeyboardInterrupt):
        train(config(), tmp_path / "run", resume=False)
    assert record(tmp_path / "run")["step"] == 2


def cut_short(part, at):
    """Send a signal in the first part of the validation after `at` hyper-iterations.

    Returns the patches, to be entered, and the list to which each part of it that is done is added.
    """
    _, owner, name = PARTS[part]
    steps, done = [], []
    validate, whole = module._validate, getattr(owner, name)

    def watch(training, tracker):
        steps.append(training.step)
        return validate(training, tracker)

    def signalled(*arguments, **options):
        if steps and steps[-1] == at:
            if not done:
                os.kill(os.getpid(), signal.SIGTERM)
            done.append(part)
        return whole(*arguments, **options)

    patches = pytest.MonkeyPatch()
    patches.setattr(module, "_validate", watch)
    patches.setattr(owner, name, signalled)
    return patches, done


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_signal_ends_a_validation(tmp_path, config, small_parts, told, part, step):
    """At once, twice; the run then comes to the same bits and has told the tracker the same."""
    chosen = config(model__norm=PARTS[part][0], train__checkpoint_every=4)
    expected, _ = told(lambda: train(chosen, tmp_path / "whole", resume=False))
    folder, history = tmp_path / "run", []
    for _ in range(2):
        patches, done = cut_short(part, step)
        try:
            entries, _ = told(lambda: interrupted(chosen, folder))
        finally:
            patches.undo()
        assert len(done) == 1
        history += entries
        found = record(folder)
        assert (found["step"], found["validated"], found["ended"]) == (step, False, None)
    entries, best = told(lambda: resume(folder))
    assert history + entries == expected
    assert contents(folder) == contents(tmp_path / "whole")
    assert "validated" not in record(folder)
    assert best is None or best.accuracy == record(folder)["best_accuracy"]


def interrupted(chosen, folder):
    with pytest.raises(Interrupted):
        train(chosen, folder, resume=True)


@pytest.mark.parametrize(
    ("changes", "ended", "step"),
    [({"train__minutes": 1e-9}, "minutes", 1), ({"train__patience": 1}, "patience", 4)],
)
def test_a_run_ends_with_the_validation_that_is_made_again(
    tmp_path, config, monkeypatch, changes, ended, step
):
    """Where the time was over, or where it is one validation too many without a better one."""
    scores = {1: 0.5, 2: 0.5, 4: 0.4, 6: 0.9}
    asked = []

    def scripted(task, sampler, *, episodes, device, processes, signals):
        asked.append(signals)
        if len(asked) == stopped:
            raise Interrupted
        return module.Score(accuracy=scores[steps[-1]], ci95=0.0, episodes=4)

    steps, validate = [], module._validate

    def watch(training, tracker):
        steps.append(training.step)
        return validate(training, tracker)

    monkeypatch.setattr(module, "_validate", watch)
    monkeypatch.setattr(module, "score_learner", scripted)
    stopped = {"minutes": 1, "patience": 2}[ended]
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(**changes), folder, resume=False)
    assert (record(folder)["step"], record(folder)["ended"]) == (step, None)
    resume(folder)
    assert (record(folder)["step"], record(folder)["ended"]) == (step, ended)
    assert steps[-2:] == [step, step]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1), ()])
def test_processes_give_a_validation_up_together(store, config, small_parts, part, asked):
    """When one of them has a signal; of what the first one does alone, when that one has."""
    spec = {"way": 5, "shot": 1, "query": 3}
    sampler = episode_sampler(open_store(store), "val", spec, keys="", seed=0, rotations=False)
    norm, owner, name = PARTS[part]
    task = make_learner(config(model__norm=norm), (16, 16, 1), CPU)
    signals, whole = ([], []), getattr(owner, name)

    def signalled(*arguments, **options):
        for rank in asked:
            signals[rank].append(signal.SIGTERM)
        return whole(*arguments, **options)

    def work(process):
        mine = signals[process.rank]
        try:
            return learner_accuracies(
                task, sampler, episodes=9, device=CPU, processes=process, signals=mine
            ).tolist()
        except Interrupted:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, signalled)
        found = [result for result, _ in together(2, work)]
    given_up = 0 in asked if part == "heads" else bool(asked)
    expected = (
        None if given_up else learner_accuracies(task, sampler, episodes=9, device=CPU).tolist()
    )
    assert found == [expected, expected]


@pytest.mark.process
def test_a_signal_to_torchrun_ends_a_validation(tmp_path, settings):
    """Of a million episodes, which take minutes."""
    file, folder = tmp_path / "config.yaml", tmp_path / "run"
    changes = {"train__validate_episodes": 10**6, "train__checkpoint_every": 1}
    file.write_text(yaml.safe_dump(settings(model__norm="support", **changes)))
    run = Torchrun(tmp_path / "log", file, "--out", folder)
    run.wait_for(folder / "last.safetensors")
    time.sleep(1.0)
    os.kill(run.process.pid, signal.SIGTERM)
    _, errors = run.end()
    assert errors == []
    assert run.err.read_text().count("stopped at hyper-iteration 2; continue") == 1
    assert (record(folder)["step"], record(folder)["validated"]) == (2, False)
