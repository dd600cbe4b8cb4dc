"""Training: it learns, resumes to the bit, and refuses what cannot be resumed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml

from apps.conftest import Killed
from bilevel_apps.config import dump_config, load_config, parse_config
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.runs.checkpoint import load_checkpoint, save_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.load import load_run
from bilevel_apps.scoring.score import episode_accuracies, score
from bilevel_apps.training import loop as module
from bilevel_apps.training.loop import train
from bilevel_core import DivergenceError
from bilevel_models import Encoder


def same(a, b):
    """Whether two checkpoints are equal to the last bit."""
    a, b = load_checkpoint(a), load_checkpoint(b)
    return (
        a.record == b.record
        and a.tensors.keys() == b.tensors.keys()
        and all(a.tensors[k].equal(b.tensors[k]) for k in a.tensors)
    )


def weights(path):
    return load_checkpoint(path).tensors


def resume(folder):
    return train(RunFolder(folder).load_config(), folder, resume=True)


def test_it_learns(tmp_path, config, monkeypatch):
    losses = []
    whole = module._hyper_iteration

    def watch(training, batch):
        losses.append(whole(training, batch)["train/loss"])
        return {"train/loss": losses[-1]}

    monkeypatch.setattr(module, "_hyper_iteration", watch)
    chosen = config(
        model__filters=16,
        train__steps=60,
        train__meta_batch=4,
        train__lr=1e-2,
        train__validate_every=30,
        train__validate_episodes=40,
    )
    best = train(chosen, tmp_path / "run", resume=False)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert best.accuracy > 0.6  # chance is 0.2
    assert best.episodes == 40


def test_what_a_run_leaves(trained, config, store):
    assert {p.name for p in trained.iterdir()} - {".lock"} == {
        "config.yaml",
        "last.safetensors",
        "best.safetensors",
    }
    last = load_checkpoint(trained / "last.safetensors")
    best = load_checkpoint(trained / "best.safetensors")
    assert last.record["step"] == 6
    assert best.record["step"] == best.record["best_step"] == last.record["best_step"]
    assert best.record["best_accuracy"] == last.record["best_accuracy"] > 0
    assert best.record["best_ci95"] == last.record["best_ci95"] > 0
    assert last.record["image_shape"] == [16, 16, 1]
    assert last.record["environment"]["threads"] == 1


def test_saved_configuration_is_resolved(tmp_path, config, store, monkeypatch):
    monkeypatch.chdir(store.parent)
    chosen = config(data=store.name, threads=None, train__steps=1)
    train(chosen, tmp_path / "run", resume=False)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["data"] == str(store)
    assert saved["threads"] == int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    assert saved["episode"]["rotations"] is False
    assert saved["train"]["lr"] == 3e-3  # defaults are written out
    loaded = RunFolder(tmp_path / "run").load_config()
    assert dump_config(loaded) == (tmp_path / "run" / "config.yaml").read_text()


def test_the_same_run_twice_is_the_same(tmp_path, config, trained):
    train(config(), tmp_path / "again", resume=False)
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


def test_another_seed_is_another_run(tmp_path, config, trained):
    train(config(seed=1), tmp_path / "other", resume=False)
    assert not same(tmp_path / "other" / "last.safetensors", trained / "last.safetensors")


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path, config, trained, train_killed, step):
    folder = tmp_path / "run"
    train_killed(config(), folder, step)
    saved = step - step % 2  # the last checkpoint
    if saved:
        assert load_checkpoint(folder / "last.safetensors").record["step"] == saved
    resume(folder)
    for name in ("last.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.parametrize("norm", ["episode", "batch", "support"])
def test_resumed_to_the_bit_in_every_mode(tmp_path, config, train_killed, norm):
    options = {
        "model__norm": norm,
        "model__filters": 8,
        "train__schedule": "onecycle",
        "inner__learn_lr": norm != "episode",
        "inner__learn_scale": norm != "batch",
        "train__way": 6,
    }
    train(config(**options), tmp_path / "whole", resume=False)
    train_killed(config(**options), tmp_path / "cut", 5)
    resume(tmp_path / "cut")
    for name in ("last.safetensors", "best.safetensors"):
        assert same(tmp_path / "cut" / name, tmp_path / "whole" / name)


EVERYTHING = {
    "model__filters": 8,
    "train__steps": 8,
    "train__meta_batch": 4,
    "train__schedule": "cosine",
    "train__accumulate": 2,
    "train__clip": 0.1,
    "train__average": 0.8,
    "train__label_smoothing": 0.1,
    "train__augment": ["crop", "shift", "flip", "colour"],
    "train__patience": 3,
    "tracking__every": 3,
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_resumed_to_the_bit_with_every_option(tmp_path, config, train_killed, optimizer):
    chosen = config(**EVERYTHING, train__optimizer=optimizer)
    train(chosen, tmp_path / "whole", resume=False)
    for step in (3, 5):
        train_killed(chosen, tmp_path / "cut", step, resume=True)
    resume(tmp_path / "cut")
    for name in ("last.safetensors", "best.safetensors"):
        whole, cut = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert cut.read_bytes() == whole.read_bytes()
    names = weights(tmp_path / "cut" / "last.safetensors")
    adam, momentum = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}
    kinds = {"adamw": adam, "muon": adam | momentum, "sgd": momentum}
    held = {name.rpartition(".")[2] for name in names if name.startswith("optimizer.")}
    assert held == kinds[optimizer]
    assert any(name.startswith("average.") for name in names)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train__optimizer", "sgd"),
        ("train__optimizer", "muon"),
        ("train__clip", 1e-3),
        ("train__label_smoothing", 0.1),
        ("train__augment", ["flip"]),
        ("train__schedule", "cosine"),
    ],
)
def test_every_option_has_an_effect(tmp_path, config, trained, key, value):
    train(config(**{key: value}), tmp_path / "run", resume=False)
    assert not same(tmp_path / "run" / "last.safetensors", trained / "last.safetensors")


def test_in_parts_the_weights_are_the_same_to_rounding(tmp_path, config):
    for parts in (1, 2, 4):
        chosen = config(train__meta_batch=4, train__accumulate=parts, train__steps=2)
        train(chosen, tmp_path / str(parts), resume=False)
    whole = weights(tmp_path / "1" / "last.safetensors")
    for parts in (2, 4):
        found = weights(tmp_path / str(parts) / "last.safetensors")
        for name in (name for name in whole if name.startswith("model.")):
            assert torch.allclose(found[name], whole[name], rtol=1e-3, atol=1e-5), name


def test_a_clipped_step_of_gradient_descent_has_its_length(tmp_path, config):
    """One step of sgd from a known start: with Nesterov's momentum it is (1 + 0.9) lr g."""
    options = {"train__optimizer": "sgd", "train__weight_decay": 0.0, "train__steps": 1}
    moved = {}
    for name, clip, lr in (("start", None, 1e-30), ("clipped", 1e-3, 0.5), ("free", None, 0.5)):
        train(config(**options, train__clip=clip, train__lr=lr), tmp_path / name, resume=False)
        tensors = weights(tmp_path / name / "last.safetensors")
        learned = [k for k in sorted(tensors) if k.startswith("model.") and "running" not in k]
        moved[name] = torch.cat([tensors[k].flatten().double() for k in learned])
    clipped = torch.linalg.vector_norm(moved["clipped"] - moved["start"])
    free = torch.linalg.vector_norm(moved["free"] - moved["start"])
    assert float(clipped) == pytest.approx(1.9 * 0.5 * 1e-3, rel=1e-3)
    assert free > 10 * clipped
    along = torch.dot(moved["clipped"] - moved["start"], moved["free"] - moved["start"])
    assert float(along / clipped / free) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"train__accumulate": 2, "model__norm": "batch"},
            "train.accumulate=2: with model.norm=batch the statistics are those of the whole",
        ),
        (
            {"train__accumulate": 3, "train__meta_batch": 4},
            "train.accumulate=3: 4 episodes do not divide into as many equal parts",
        ),
        (
            {"episode__way": 20, "train__way": 5},
            "way=20 but split 'val' has 16 classes: lower way or use a split with more classes "
            r"\(change episode.way",
        ),
        ({"model__kernel_size": 1}, "model.name=omniglot-net: .* has no option kernel_size"),
    ],
)
def test_refused_before_anything_is_written(tmp_path, config, make_store, changes, says):
    data = str(make_store(classes={"train": 24, "val": 16}))
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=says) as refusal:
        train(config(data=data, **changes), folder, resume=False)
    assert "\n" not in str(refusal.value)
    assert not folder.exists()


def test_killed_between_best_and_last(tmp_path, config, trained, monkeypatch):
    """The best checkpoint is then ahead of the last one; the resumed run comes to the same."""
    folder = tmp_path / "run"
    whole = module.save_checkpoint

    def cut(path, checkpoint):
        if path == folder / "last.safetensors" and checkpoint.record["step"] == 4:
            raise Killed
        whole(path, checkpoint)

    monkeypatch.setattr(module, "save_checkpoint", cut)
    with pytest.raises(Killed):
        train(config(), folder, resume=False)
    monkeypatch.undo()
    resume(folder)
    for name in ("last.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_validation_encodes_an_image_once(tmp_path, config, monkeypatch):
    """Where its features do not depend on the episode; the accuracies are the same."""
    encoded = []
    whole = Encoder.__call__

    def watch(encoder, support, query, *, training):
        if not training:
            encoded.append(support.shape[:2].numel() + query.shape[:2].numel())
        return whole(encoder, support, query, training=training)

    monkeypatch.setattr(Encoder, "__call__", watch)
    chosen = config(train__steps=2, train__validate_episodes=30, model__norm="ghost")
    best = train(chosen, tmp_path / "run", resume=False)
    assert sum(encoded) <= 6 * 20  # the images of the split; 30 episodes have 600
    run = load_run(tmp_path / "run", "cpu")
    sampler = run.sampler(run.store(None), "val", seed=chosen.seed, rotations=False)
    alone = episode_accuracies(run.learner.accuracies, sampler, episodes=30, device=run.device)
    assert best == score(alone)


def test_a_record_without_the_interval_can_be_read(tmp_path, trained):
    """As versions before wrote it."""
    folder = shutil.copytree(trained, tmp_path / "run")
    for path in (folder / "last.safetensors", folder / "best.safetensors"):
        kept = load_checkpoint(path)
        record = {key: value for key, value in kept.record.items() if key != "best_ci95"}
        save_checkpoint(path, replace(kept, record=record))
    assert load_run(folder, "cpu").step == load_run(trained, "cpu").step
    assert resume(folder) is None


def test_validation_changes_nothing(tmp_path, config, trained):
    """Also not the running averages: a run that validates rarely has the same weights."""
    train(config(train__validate_every=100), tmp_path / "run", resume=False)
    rare, often = (
        weights(tmp_path / "run" / "last.safetensors"),
        weights(trained / "last.safetensors"),
    )
    assert any("running" in name for name in rare)
    assert all(torch.equal(rare[k], often[k]) for k in often)


def test_ties_keep_the_earlier_best(tmp_path, config, monkeypatch):
    constant = module.Score(accuracy=0.5, ci95=0.0, episodes=4)
    monkeypatch.setattr(module, "score_learner", lambda *_, **__: constant)
    assert train(config(), tmp_path / "run", resume=False) == constant
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").record["step"] == 2
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").record["best_step"] == 2


def test_weight_decay_is_on_the_backbone_alone(tmp_path, config):
    """With T = 0 no parameter has a gradient, so that decay is all that happens."""
    options = {"inner__steps": 0, "train__steps": 1, "train__lr": 0.1}
    for name, decay in (("with", 0.5), ("without", 0.0)):
        chosen = config(**options, train__weight_decay=decay)
        train(chosen, tmp_path / name, resume=False)
    with_decay, without = (
        weights(tmp_path / name / "last.safetensors") for name in ("with", "without")
    )
    for key, value in without.items():
        if key.startswith("model.backbone.convolutions"):
            assert torch.allclose(with_decay[key], value * 0.95)
            assert not torch.equal(with_decay[key], value)
        elif key in ("model.log_lr", "model.log_scale"):
            assert torch.equal(with_decay[key], value)
            assert value != 0


def test_learned_scalars_move_and_fixed_ones_do_not(tmp_path, config, trained):
    train(config(inner__learn_lr=False), tmp_path / "run", resume=False)
    fixed = weights(tmp_path / "run" / "last.safetensors")
    assert float(fixed["model.log_lr"].exp()) == pytest.approx(0.1)
    assert float(weights(trained / "last.safetensors")["model.log_lr"].exp()) != pytest.approx(0.1)


def test_a_finished_run_may_be_resumed(tmp_path, trained, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    capsys.readouterr()
    assert resume(folder) is None
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    _, told = capsys.readouterr().err.splitlines()
    assert told == (
        "nothing to resume: the run ended: all 6 hyper-iterations are done; for a longer one, add "
        "--set train.steps=N to --resume"
    )


def test_resume_without_a_run_begins_one(tmp_path, config, trained):
    train(config(), tmp_path / "run", resume=True)
    assert same(tmp_path / "run" / "last.safetensors", trained / "last.safetensors")


def test_a_run_is_not_overwritten(trained, config):
    before = (trained / "last.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a run already: add `resume`"):
        train(config(seed=5), trained, resume=False)
    assert (trained / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", 0.5),
        ("seed", 1),
        ("inner.learn_lr", False),
        ("model.filters", None),
        ("threads", 2),
    ],
)
def test_other_settings_are_refused_on_resume(trained, settings, key, value):
    given = parse_config(settings(**{key.replace(".", "__"): value}), "test")
    with pytest.raises(InputError, match=f"the run has {key}=.*, but {key}=.* was given"):
        RunFolder(trained).continued(given)


def test_equal_settings_are_accepted_on_resume(trained, settings, store, monkeypatch):
    monkeypatch.chdir(store.parent)
    folder = RunFolder(trained)
    for changes in (
        {},
        {"threads": None},
        {"episode__rotations": None},
        {"precision": "auto"},
    ):
        continued = folder.continued(parse_config(settings(**changes), "test"))
        assert continued == folder.load_config()
    assert folder.continued(parse_config({}, "test")) == folder.load_config()


def test_the_device_may_change_and_stays_otherwise(trained):
    folder = RunFolder(trained)
    assert folder.load_config().device == "cpu"
    assert folder.continued(parse_config({}, "test")).device == "cpu"
    assert folder.continued(parse_config({"device": "auto"}, "test")).device == "auto"


def test_other_images_are_refused_on_resume(tmp_path, config, trained, make_store):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    moved = make_store(seed=1)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=f"{moved}: its images are not those"):
        train(config(data=str(moved)), folder, resume=True)
    assert (folder / "config.yaml").read_bytes() == before


def test_the_same_images_elsewhere_are_fine(tmp_path, config, trained, make_store):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    assert train(config(data=str(make_store())), folder, resume=True) is None


def test_a_run_that_never_came_to_a_checkpoint_may_begin_anew(tmp_path, config):
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="there is no checkpoint yet"):
        train(config(inner__lr=1e38, model__unit_length=False), folder, resume=False)
    train(config(train__steps=1), folder, resume=False)
    assert RunFolder(folder).load_config().inner.lr == 0.1


def test_checkpoints_are_safe_even_where_the_configuration_is_gone(tmp_path, trained, config):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "config.yaml").unlink()
    before = (folder / "last.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a run already: add `resume`"):
        train(config(), folder, resume=False)
    assert (folder / "last.safetensors").read_bytes() == before


def test_a_store_that_moved_is_taken_by_its_new_name(trained, settings):
    folder = RunFolder(trained)
    continued = folder.continued(parse_config(settings(data="/elsewhere/tiny.h5"), "test"))
    assert continued.data == "/elsewhere/tiny.h5"


@pytest.mark.slow
def test_resume_is_exact_at_the_presets_size(tmp_path, config, make_store, train_killed):
    """Two threads, bfloat16 and the whole network, where the other tests have a small one."""
    data = str(make_store(size=28))
    changes = {"data": data, "threads": 2, "precision": "bfloat16", "model__filters": 64}
    train(config(**changes), tmp_path / "whole", resume=False)
    train_killed(config(**changes), tmp_path / "parts", 3)
    resume(tmp_path / "parts")
    whole, parts = (tmp_path / name / "last.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_other_threads_are_told(tmp_path, trained, config, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    train(config(threads=2), folder, resume=True)
    assert "warning: resuming with threads 1 → 2" in capsys.readouterr().err


def test_half_written_files_are_cleared_away(tmp_path, config):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".last.safetensors.01234567.tmp").write_bytes(b"half")
    train(config(train__steps=1), folder, resume=False)
    assert not list(folder.glob(".*.tmp"))


# The first outer step makes the learned step size overflow.
OVERFLOW = {
    "train__lr": 100.0,
    "train__checkpoint_every": 1,
    "inner__lr": 0.01,
    "inner__steps": 1,
}


def test_divergence_keeps_the_last_checkpoint(tmp_path, config):
    folder = tmp_path / "run"
    with pytest.raises(RunError) as caught:
        train(config(**OVERFLOW), folder, resume=False)
    message = str(caught.value)
    last = load_checkpoint(folder / "last.safetensors")
    assert last.record["step"] == 1
    assert message.startswith("after hyper-iteration 1: the heads are not finite after T = 1 ")
    assert "lower the step size" in message
    assert message.endswith("last.safetensors keeps the last good state")
    assert all(torch.isfinite(t).all() for t in last.tensors.values())
    assert (
        load_run(folder, "cpu").sha256 == load_checkpoint(folder / "last.safetensors").file_sha256
    )
    with pytest.raises(RunError):
        resume(folder)
    assert load_checkpoint(folder / "last.safetensors").record == last.record


def test_divergence_at_once_says_that_there_is_no_checkpoint(tmp_path, config):
    with pytest.raises(RunError, match=r"^after hyper-iteration 0: .*there is no checkpoint yet$"):
        train(config(inner__lr=1e38, model__unit_length=False), tmp_path / "run", resume=False)


def test_divergence_in_validation(tmp_path, config, monkeypatch):
    def diverge(*_, **__):
        raise DivergenceError("the inner run grows")

    monkeypatch.setattr(module, "score_learner", diverge)
    with pytest.raises(RunError, match="validation after hyper-iteration 2: the inner run grows"):
        train(config(), tmp_path / "run", resume=False)


def test_a_gradient_that_is_not_finite_is_not_applied(tmp_path, config, monkeypatch):
    whole = module.outer_steps

    def overflow(task, *arguments):
        for outer in whole(task, *arguments):
            if (tmp_path / "run" / "last.safetensors").exists():
                next(task.backbone.parameters()).grad[0] = float("inf")
            yield outer

    monkeypatch.setattr(module, "outer_steps", overflow)
    with pytest.raises(RunError, match="hyper-iteration 2: the gradient of the weights is not"):
        train(config(), tmp_path / "run", resume=False)
    assert all(
        torch.isfinite(t).all() for t in weights(tmp_path / "run" / "last.safetensors").values()
    )


@pytest.mark.process
def test_a_second_process_is_refused(tmp_path, config, command, settings):
    folder = tmp_path / "run"
    with RunFolder(folder).exclusive():
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(settings()))
        words = ["-m", "bilevel_apps.cli.train", str(file), "--out", str(folder)]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=100)
        assert not (folder / "config.yaml").exists()
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {folder}: another process is at work in this folder")
    train(config(train__steps=1), folder, resume=False)  # free again


def test_the_record_names_the_configuration(trained):
    record = load_checkpoint(trained / "last.safetensors").record
    assert record["config"] == load_config(trained / "config.yaml")
    assert json.loads(json.dumps(record)) == record
