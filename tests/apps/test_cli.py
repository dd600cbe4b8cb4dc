"""The commands: one line for a mistake, results on stdout, help without the heavy libraries."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bilevel_apps.cli.common import with_flags
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import make_learner
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.load import load_run
from bilevel_apps.scoring.learner import score_learner
from bilevel_apps.system.hardware import choose_device

TEXT = "not a store\n" * 100


@pytest.fixture
def spoiled(tmp_path, store):
    """Make a store that is unusable in one way."""

    def make(kind):
        path = tmp_path / f"{kind}.h5"
        if kind == "truncated":
            path.write_bytes(store.read_bytes()[:-1000])
        elif kind == "empty":
            path.touch()
        elif kind == "text":
            path.write_text(TEXT)
        elif kind == "foreign":
            with h5py.File(path, "w") as file:
                file["images"] = np.zeros((3, 4))
        elif kind == "folder":
            path.mkdir()
        elif kind == "flipped":
            content = bytearray(store.read_bytes())
            content[len(content) // 4] ^= 1  # of the first split, train
            path.write_bytes(content)
        return path

    return make


@pytest.fixture
def config_file(tmp_path, settings):
    def write(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings(**changes)))
        return path

    return write


@pytest.fixture
def refused(command, tmp_path):
    """Run bilevel-train on bad input; return its one line, having checked all else."""

    def run(*arguments, status=2, out=tmp_path / "run"):
        found = command("train", *arguments, "--out", out)
        assert found.status == status, found.err
        assert "Traceback" not in found.err
        if status == 2:
            assert not out.exists()
            return found.error
        return found.err.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "No such file"),
        ("truncated", "truncated or damaged"),
        ("empty", "an empty file"),
        ("text", "another kind of file"),
        ("foreign", "not a store"),
        ("folder", "not a plain file"),
        ("flipped", "damaged"),
    ],
)
def test_unusable_stores(refused, command, spoiled, trained, config_file, kind, says):
    path = spoiled(kind)
    lines = [refused(config_file(), "--data", path)]
    lines.append(command("eval", trained, "--data", path, "--split", "train").error)
    if kind != "flipped":
        lines += [command("data", action, path).error for action in ("verify", "info")]
    for line in lines:
        assert line.startswith(f"error: {path}")
        assert says in line


# What was given, and what the line names: the key or option, what was found, what would do.
BAD_SETTINGS = [
    (["--set", "train.step=3"], ["train.step;", "train.steps"]),
    (["--set", "train.steps=many"], ["train.steps:", "integer", "'many'"]),
    (["--set", "train.steps=true"], ["train.steps:", "integer", "True"]),
    (["--set", "train.steps"], ["--set train.steps:", "KEY=VALUE"]),
    (["--set", "train.lr=2001-99-99"], ["train.lr=2001-99-99", "YAML"]),
    (["--set", "episode.way=13"], ["way=13", "'train'", "12 classes"]),
    (["--set", "episode.way=7"], ["way=7", "'val'", "6 classes", "episode.way"]),
    (["--set", "episode.way=1"], ["way:", "≥ 2", "found 1"]),
    (["--set", "train.way=13"], ["way=13", "12 classes", "train.way"]),
    (["--set", "episode.shot=10", "--set", "episode.query=11"], ["shot=10", "query=11", "20"]),
    (["--set", "train.query=20"], ["query=20", "'train-0'", "20 images", "train.query"]),
    (["--set", "model.name=resnet"], ["model.name", "'resnet'", "omniglot-net"]),
    (["--set", "model.norm=layer"], ["model.norm:", "'ghost'", "'layer'"]),
    (["--device", "tpu"], ["--device:", "'cuda'", "'tpu'"]),
    (["--preset", "glyphs-5way-1shot"], ["--preset glyphs-5way-1shot", "config.yaml"]),
]
REMEDY = re.compile(r"\b(change|choose|correct|did you mean|expected|give|lower|should be|use)\b")


@pytest.mark.parametrize(("arguments", "names"), BAD_SETTINGS, ids=range(len(BAD_SETTINGS)))
def test_an_error_says_what_was_refused_what_was_found_and_what_to_do(
    refused, config_file, arguments, names
):
    line = refused(config_file(), *arguments)
    assert re.match(r"error: \S.*: \S", line)
    assert [name for name in names if name not in line] == []
    assert REMEDY.search(line)


def test_an_unknown_option(refused, config_file):
    assert "--nonsense" in refused(config_file(), "--nonsense")


def test_unknown_preset(refused):
    assert "--preset omniglot: no such preset; choose one of" in refused("--preset", "omniglot")


def test_missing_and_broken_configuration(refused, tmp_path):
    path = tmp_path / "settings.yaml"
    assert f"{path}: cannot be read (No such file" in refused(path)
    path.write_text("train: [")
    assert f"{path}: not valid YAML at line" in refused(path)
    path.write_text("train: {step: 1}")
    assert f"{path}: unknown key train.step" in refused(path, "--set", "seed=1")


def test_no_data(refused):
    assert "no data: give --data FILE.h5" in refused("--preset", "glyphs-5way-1shot")


def test_nothing_to_train(refused):
    assert "nothing to train: give --preset NAME or a CONFIG.yaml" in refused()
    assert "holds no run to resume" in refused("--resume")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_cuda(refused, command, config_file, trained):
    assert "no CUDA device is available" in refused(config_file(), "--device", "cuda")
    line = command("eval", trained, "--device", "cuda", "--episodes", 2).error
    assert "no CUDA device is available" in line


def test_missing_out(command, config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = command("train", config_file())
    assert found.status == 2
    assert found.error.startswith("error: --out DIR is missing")
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_out_that_cannot_be_made(refused, command, config_file, tmp_path):
    (tmp_path / "file").write_text("kept")
    below = tmp_path / "file" / "run"
    line = refused(config_file(), out=below)
    assert (
        line
        == f"error: {below}: cannot write to this folder (Not a directory): choose another --out"
    )
    found = command("train", config_file(), "--out", tmp_path / "file")
    assert found.status == 2
    assert "cannot write to this folder (File exists)" in found.error
    found = command("train", config_file(), "--out", tmp_path / ("x" * 300))
    assert found.status == 2
    assert "cannot write to this folder (File name too long)" in found.error
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_is_kept_without_resume(command, config_file, trained):
    before = {p.name: p.read_bytes() for p in trained.iterdir()}
    found = command("train", config_file(), "--out", trained)
    assert found.status == 2
    assert (
        found.error
        == f"error: {trained}: holds a run already: add --resume, or choose another --out"
    )
    found = command("train", config_file(seed=4), "--out", trained, "--resume")
    assert found.status == 2
    assert "the run has seed=0, but seed=4 was given" in found.error
    assert {p.name: p.read_bytes() for p in trained.iterdir()} == before


def test_divergence_is_status_1(refused, config_file):
    settings = {"inner__lr": 1e38, "model__unit_length": False}
    line = refused(config_file(**settings), status=1)
    assert line.startswith("error: after hyper-iteration 0: the heads are not finite after T = 5 ")


def test_training_and_resuming(command, config_file, tmp_path, store):
    folder = tmp_path / "run"
    found = command("train", config_file(), "--out", folder, "--set", "train.steps=3")
    assert found.status == 0
    first, second = found.out.splitlines()
    assert first.startswith("best validation accuracy ")
    assert second == f"evaluate with: bilevel-eval {folder}"
    assert "error" not in found.err
    assert "warning" not in found.err
    found = command("train", "--out", folder, "--resume")
    assert found.status == 0
    assert "nothing to resume: the run ended: all 3 hyper-iterations are done; for a" in found.err


def test_a_preset_with_changes(command, tmp_path, store):
    folder = tmp_path / "run"
    small = ["train.steps=1", "train.meta_batch=1", "train.way=5", "train.validate_episodes=2"]
    small += ["episode.query=3", "threads=1", "tracking.enabled=false", "train.query=3"]
    words = [word for assignment in small for word in ("--set", assignment)]
    preset = ["--preset", "glyphs-5way-1shot", "--data", store, "--out", folder]
    assert command("train", *preset, *words).status == 0
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["train"]["steps"] == 1
    assert saved["model"]["norm"] == "ghost"
    found = command("train", *preset, *words, "--resume")
    assert found.status == 0
    assert "nothing to resume: the run ended: all 1 hyper-iterations are done; for a" in found.err


@pytest.mark.process
def test_debug_shows_the_traceback(config_file, tmp_path):
    words = ["-m", "bilevel_apps.cli.train", str(config_file()), "--debug"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "InputError" in done.stderr


@pytest.mark.process
def test_the_installed_command_ends_with_its_status(tmp_path):
    words = ["-m", "bilevel_apps.cli.evaluate", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: no run here")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_evaluation_without_a_run(command, tmp_path, copy):
    assert "no run here (no config.yaml)" in command("eval", tmp_path).error
    assert "no run here" in command("eval", tmp_path / "missing").error
    for name in ("best", "last"):
        (copy / f"{name}.safetensors").unlink()
    assert "no checkpoint yet" in command("eval", copy).error


def test_evaluation_of_a_damaged_run(command, copy):
    path = copy / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    found = command("eval", copy, "--episodes", 2)
    assert found.status == 2
    assert found.error.startswith(f"error: {path}: damaged: its contents do not match its SHA-256")
    path.write_bytes(content[:100])
    assert f"{path}: damaged or not a checkpoint" in command("eval", copy).error
    shutil.copy(copy / "config.yaml", path)
    assert f"{path}: damaged or not a checkpoint" in command("eval", copy).error


def test_evaluation_of_a_run_with_a_damaged_configuration(command, copy):
    path = copy / "config.yaml"
    path.write_text("seed: [")
    assert f"{path}: not valid YAML" in command("eval", copy).error


def test_evaluation_follows_the_checkpoint_and_not_an_edited_configuration(command, copy):
    before = command("eval", copy, "--episodes", 5, "--json").out
    path = copy / "config.yaml"
    path.write_text(path.read_text().replace("filters: 4", "filters: 8"))
    assert command("eval", copy, "--episodes", 5, "--json").out == before
    refusal = command("train", "--out", copy, "--resume").error
    assert f"{path}: model.filters is 8, but the run began with 4" in refusal


BAD_EVALUATIONS = [
    (["--episodes", 0], "'--episodes'"),
    (["--episodes", 1], "'--episodes'"),
    (["--episodes", "many"], "'--episodes'"),
    (["--steps", -1], "--steps -1: expected whole numbers ≥ 0"),
    (["--norm", "layer"], "--norm layer: no such normalisation: choose one of episode, batch"),
    (["--norm", "batch", "--track"], "--track with --norm batch"),
    (["--overlap", "--track"], "--track with --overlap"),
    (["--overlap", "--split", "val", "--steps", "1,2", "--choose"], "--choose with --overlap"),
    (["--shifts", 1, "--track"], "--track with --shifts 1"),
    (["--shifts", 1, "--split", "val", "--steps", "1,2", "--choose"], "--choose with --shifts 1"),
    (["--shifts", -1], "'--shifts'"),
    (["--steps", 7, "--track"], "--track with --steps 7: what is kept of a run is with its own T"),
    (["--lr", "0.1", "--steps", "1,2", "--track"], "--track with --lr 0.1: what is kept of a run"),
    (["--norm", "batch", "--split", "val", "--steps", "1,2", "--choose"], "--choose with --norm"),
    (["--way", 7], "way=7 but split 'test' has 6 classes: lower way"),
    (["--way", 7], "(change --way, --shot, --query or --split)"),
    (["--shot", 10, "--query", 11], "has 20 images"),
    (["--calibrate"], "--calibrate with --split test: a head is chosen on the validation classes"),
    (["--calibrate", "--split", "val"], "--calibrate: the heads of this run are of T = 5"),
    (["--calibrate", "--split", "val", "--steps", 3], "--calibrate with --choose, --steps or --lr"),
    (["--split", "dev"], "has none of this name: choose one of train, val, test"),
    (["--device", "tpu"], "--device tpu: expected auto, cpu or cuda"),
    (["--nonsense"], "No such option: --nonsense"),
    (["extra"], "unexpected extra argument"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_EVALUATIONS, ids=range(len(BAD_EVALUATIONS)))
def test_unusable_evaluations(command, trained, arguments, says):
    found = command("eval", trained, *arguments)
    assert found.status == 2
    assert says in found.error


def test_evaluation_on_images_of_another_size(command, trained, make_store):
    other = make_store(size=28, classes={"test": 6})
    found = command("eval", trained, "--data", other)
    assert found.status == 2
    assert f"{other}: images of (height, width, channels) (28, 28, 1), but" in found.error


def test_only_a_score_on_the_runs_own_images_is_tracked(command, trained, make_store, store):
    other = make_store(seed=1)
    found = command("eval", trained, "--data", other, "--track")
    assert found.status == 2
    assert f"{other}: its images of test are not those of the run's own store" in found.error
    copy = shutil.copy(store, other.with_name("copy.h5"))
    assert command("eval", trained, "--data", copy, "--episodes", 2, "--track").status == 0


def evaluate(command, *arguments):
    found = command("eval", *arguments, "--json")
    assert found.status == 0, found.err
    (line,) = found.out.splitlines()
    return json.loads(line)


def test_evaluation_as_json(command, trained, store):
    found = evaluate(command, trained, "--episodes", 12)
    info = json.loads(command("data", "info", store, "--json").out)
    digest = hashlib.sha256((trained / "best.safetensors").read_bytes()).hexdigest()
    expected = {
        "episodes": 12,
        "way": 5,
        "shot": 1,
        "query": 3,
        "steps": 5,
        "norm": "ghost",
        "split": "test",
        "split_sha256": info["splits"]["test"]["sha256"],
        "seed": 0,
        "checkpoint_sha256": digest,
        "checkpoint": str(trained / "best.safetensors"),
        "checkpoint_step": step_of(trained / "best.safetensors"),
        "trained_steps": 5,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert 0 < found["accuracy"] <= 1
    assert found["ci95"] > 0
    assert evaluate(command, trained, "--episodes", 12) == found


def test_evaluation_takes_its_options(command, trained, store):
    options = ["--split", "val", "--way", 4, "--shot", 2, "--query", 4, "--steps", 0, "--seed", 9]
    found = evaluate(command, trained, "--episodes", 5, *options)
    keys = ("split", "way", "shot", "query", "steps", "seed")
    assert [found[key] for key in keys] == ["val", 4, 2, 4, 0, 9]
    assert found["accuracy"] == 0.25  # a head that stays zero always answers the first class
    assert found["ci95"] == 0.0


def test_features_over_shifts_are_told_and_leave_the_run_as_it_is(command, trained):
    plain, shifted = (
        evaluate(command, trained, "--episodes", 12, *more) for more in ([], ["--shifts", 2])
    )
    assert (plain["shifts"], shifted["shifts"]) == (0, 2)
    assert shifted["accuracy"] != plain["accuracy"]
    assert "over shifts of 2 px" in command("eval", trained, "--episodes", 12, "--shifts", 2).out
    assert evaluate(command, trained, "--episodes", 12)["accuracy"] == plain["accuracy"]


def test_queries_may_be_support_images_where_that_is_asked_for(command, trained):
    words = ["--episodes", 40, "--shot", 5, "--query", 15]
    honest, seen = (evaluate(command, trained, *words, *more) for more in ([], ["--overlap"]))
    assert (honest["overlap"], seen["overlap"]) == (False, True)
    assert not seen["trained_overlap"]
    assert seen["accuracy"] != honest["accuracy"]
    assert "may be support images" in command("eval", trained, *words, "--overlap").out


def test_another_seed_has_other_episodes(command, trained):
    scores = {
        evaluate(command, trained, "--episodes", 9, "--seed", s)["accuracy"] for s in range(4)
    }
    assert len(scores) > 1


def test_the_runs_own_seed_draws_the_episodes_that_chose_its_checkpoint(command, trained):
    best = load_checkpoint(trained / "best.safetensors").record["best_accuracy"]
    words = ["--split", "val", "--episodes", 4]  # as many as the training validates on
    assert evaluate(command, trained, *words)["accuracy"] == best
    told = " ".join(command("eval", "--help").out.split())
    assert "with val, the run's own seed gives those that chose its checkpoint" in told


def test_evaluation_with_baselines(command, trained):
    found = evaluate(command, trained, "--episodes", 10, "--baselines")
    assert found["baselines"].keys() >= {"raw-pixel nearest neighbour", "untrained network"}
    assert all(0 < row["accuracy"] <= 1 for row in found["baselines"].values())
    assert "upright" not in found
    alone = evaluate(command, trained, "--episodes", 10)
    assert alone["accuracy"] == found["accuracy"]


def test_the_untrained_network_has_the_statistics_that_are_asked_for(command, trained, config):
    found = evaluate(command, trained, "--episodes", 12, "--norm", "episode", "--baselines")
    device = torch.device("cpu")
    run = load_run(trained, "cpu")
    sampler = run.sampler(run.store(None), "test", seed=0, rotations=False)
    task = make_learner(config(model__norm="episode"), (16, 16, 1), device)
    expected = score_learner(task, sampler, episodes=12, device=device)
    assert found["baselines"]["untrained network"]["accuracy"] == expected.accuracy


def test_evaluation_with_other_statistics(command, trained):
    own = evaluate(command, trained, "--episodes", 12)
    found = evaluate(command, trained, "--episodes", 12, "--norm", "episode")
    assert (own["norm"], own["trained_norm"]) == ("ghost", "ghost")
    assert (found["norm"], found["trained_norm"]) == ("episode", "ghost")
    assert found["accuracy"] != own["accuracy"]
    same = evaluate(command, trained, "--episodes", 12, "--norm", "ghost")
    assert same["accuracy"] == own["accuracy"]
    heading = command("eval", trained, "--episodes", 12, "--norm", "episode").out
    assert "episode normalisation (trained with ghost); " in heading


def step_of(path):
    return load_checkpoint(path).record["step"]


def test_evaluation_for_people(command, trained):
    found = command("eval", trained, "--episodes", 12)
    assert found.status == 0
    head, row, *_ = found.out.splitlines()
    assert head == (
        "5-way 1-shot, 12 episodes of test, T = 5, ghost normalisation; "
        f"best.safetensors of hyper-iteration {step_of(trained / 'best.safetensors')}"
    )
    report = evaluate(command, trained, "--episodes", 12)
    assert row.split()[-4:] == [
        f"{100 * report['accuracy']:.2f}",
        "±",
        f"{100 * report['ci95']:.2f}",
        "%",
    ]


def test_evaluation_uses_the_last_checkpoint_before_any_validation(command, copy):
    (copy / "best.safetensors").unlink()
    found = evaluate(command, copy, "--episodes", 3)
    assert found["checkpoint"] == str(copy / "last.safetensors")
    assert found["checkpoint_step"] == 6
    assert "last.safetensors of hyper-iteration 6" in command("eval", copy, "--episodes", 3).out


@pytest.fixture
def pictures(tmp_path):
    """Six classes of four PNG files."""
    rng = np.random.default_rng(0)
    for c in range(6):
        folder = tmp_path / "pictures" / f"class-{c}"
        folder.mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def test_prepare_info_and_verify(command, pictures, tmp_path):
    out = tmp_path / "made" / "own.h5"
    options = ["--option", "size=16", "--option", "channels=1"]
    found = command("data", "prepare", "folder", "--source", pictures, "--out", out, *options)
    assert found.status == 0, found.err
    assert found.out.startswith(f"{out}: folder, 16×16 grey; licence: ")
    assert "6 classes       24 images" in found.out
    again = command("data", "info", out)
    assert again.out == found.out
    info = json.loads(command("data", "info", out, "--json").out)
    assert info["name"] == "folder"
    assert sum(split["images"] for split in info["splits"].values()) == 24
    assert sum(split["classes"] for split in info["splits"].values()) == 6
    assert "class-0" not in json.dumps(info)
    named = json.loads(command("data", "info", out, "--json", "--classes").out)
    names = [name for split in named["splits"].values() for name in split["class_names"]]
    assert sorted(names) == [f"class-{k}" for k in range(6)]
    listed = command("data", "info", out, "--classes").out.removeprefix(again.out).splitlines()
    assert [line.split()[1] for line in listed] == names
    found = command("data", "verify", out)
    assert (found.status, found.out) == (0, f"{out}: good (24 images, every hash matches)\n")


def test_splits_with_few_classes_cost_a_warning(command, pictures, tmp_path):
    out = tmp_path / "own.h5"
    words = ["data", "prepare", "folder", "--source", pictures, "--out", out, "--option", "size=8"]
    found = command(*words)
    assert found.status == 0
    info = json.loads(command("data", "info", out, "--json").out)
    small = {name: split["classes"] for name, split in info["splits"].items()}
    assert all(size < 5 for size in small.values())
    told = ", ".join(f"{name} ({size})" for name, size in small.items())
    (warning,) = [line for line in found.err.splitlines() if line.startswith("warning")]
    assert warning.startswith(f"warning: {out}: fewer than 5 classes in {told}: too few for the")


def test_prepare_replaces_only_when_asked(command, pictures, tmp_path):
    out = tmp_path / "own.h5"
    words = ["data", "prepare", "folder", "--source", pictures, "--out", out, "--option", "size=8"]
    assert command(*words).status == 0
    before = out.read_bytes()
    assert "exists already" in command(*words, "--option", "seed=1").error
    assert out.read_bytes() == before
    assert command(*words, "--option", "seed=1", "--overwrite").status == 0
    assert out.read_bytes() != before


BAD_PREPARATIONS = [
    (["nonsense"], "source: expected one of"),
    (["folder"], "folder: expected a folder with a directory a class"),
    (["folder", "--option", "size"], "--option size: expected KEY=VALUE"),
    (["folder", "--option", "size=2001-99-99"], "not valid YAML"),
    (["folder", "--option", "colour=1"], "unknown option 'colour'; its options: size"),
    (["folder", "--option", "path=x"], "--option path=x: use --source PATH"),
    (["folder", "--download"], "nothing to download"),
]


@pytest.mark.parametrize(("words", "says"), BAD_PREPARATIONS, ids=range(len(BAD_PREPARATIONS)))
def test_unusable_preparations(command, tmp_path, words, says):
    found = command("data", "prepare", *words, "--out", tmp_path / "x.h5")
    assert found.status == 2
    assert says in found.error
    assert list(tmp_path.iterdir()) == []


def test_verify_notices_one_bit(command, store, tmp_path):
    copied = tmp_path / store.name
    for name in (store.name, f"{store.name}.sha256"):
        shutil.copy(store.parent / name, tmp_path / name)
    assert command("data", "verify", copied).status == 0
    content = bytearray(copied.read_bytes())
    content[len(content) // 2] ^= 1
    copied.write_bytes(content)
    found = command("data", "verify", copied)
    assert found.status == 2
    assert found.error.startswith(f"error: {copied}: ")


HELP = {
    ("train",): [
        "CONFIG.yaml",
        "--preset",
        "--data",
        "--out",
        "--set",
        "--device",
        "--resume",
        "--sweep",
        "--sampler",
        "--trials",
    ],
    ("eval",): [
        "DIR",
        "--data",
        "--split",
        "--episodes",
        "--way",
        "--shot",
        "--query",
        "--steps",
        "--choose",
        "--plot",
        "--seed",
        "--baselines",
        "--track",
        "--json",
        "--device",
    ],
    ("data",): ["prepare", "info", "verify"],
    ("data", "prepare"): ["--out", "--source", "--download", "--option", "--overwrite"],
    ("data", "info"): ["--json", "--classes"],
    ("data", "verify"): ["FILE.h5"],
}


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_names_the_options(command, words):
    found = command(*words, "--help")
    assert (found.status, found.err) == (0, "")
    for option in HELP[words]:
        assert option in found.out
    if words != ("data",):
        assert "--debug" in found.out


@pytest.mark.parametrize("name", ["train", "eval", "data"])
def test_without_arguments_the_help_is_shown(command, name):
    found = command(name)
    assert (found.status, found.err) == (0, "")
    assert found.out == command(name, "--help").out


def test_help_of_training_names_keys_and_presets(command):
    out = command("train", "--help").out
    for word in ("train.meta_batch", "inner.learn_lr", "paper/omniglot-20way-5shot"):
        assert word in out


@pytest.mark.process
@pytest.mark.parametrize("name", ["train", "evaluate", "data"])
def test_help_is_light(name):
    code = (
        "import sys\n"
        f"from bilevel_apps.cli.{name} import main\n"
        "sys.argv = ['x', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'mlflow', 'matplotlib', 'h5py', 'sklearn'} & set(sys.modules)\n"
        "print(*sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    assert "Usage" in done.stdout


@pytest.mark.process
def test_a_reader_that_leaves_is_no_traceback(store):
    """As in `bilevel-data info … | head -0`."""
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "bilevel_apps.cli.data", "info", str(store)]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def test_prepare_mini_imagenet_from_a_folder(command, tmp_path):
    """Without its test split, which `info` says is absent."""
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        rows = [f"{split}{k}.png,{split}-class-{k % 3}" for k in range(6)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["filename,label", *rows]))
        for k in range(6):
            Image.new("RGB", (84, 84), (k, 0, 0)).save(tmp_path / "images" / f"{split}{k}.png")
    out = tmp_path / "m.h5"
    words = ["data", "prepare", "mini-imagenet", "--source", tmp_path, "--out", out]
    found = command(*words)
    assert found.status == 0, found.err
    assert found.out.startswith(f"{out}: mini-imagenet, 84×84 colour; licence: research")
    assert command("data", "info", out).out == found.out
    assert "  absent: test\n" in found.out
    (tmp_path / "images" / "val5.png").unlink()
    assert "val.csv lists 1 pictures" in command(*words, "--overwrite").error
    assert command("data", "verify", out).status == 0


def test_prepare_a_family_by_name(command, pictures, tmp_path):
    out = tmp_path / "t.h5"
    splits = tmp_path / "splits.json"
    splits.write_text('{"train": ["class-1", "class-0"], "val": ["class-5"]}')
    words = ["data", "prepare", "torchvision:ImageFolder", "--out", out]
    found = command(*words, "--source", pictures, "--option", f"splits={splits}")
    if "install bilevel-data[torchvision]" in found.err:
        pytest.skip("needs torchvision")
    assert found.status == 0, found.err
    assert found.out.startswith(f"{out}: torchvision:ImageFolder, 20×20 colour; ")
    assert "  absent: test\n" in found.out
    refused = command(*words, "--source", pictures, "--overwrite", "--option", "fractions=[1]")
    assert "fractions: expected three numbers" in refused.error


def test_errors_name_parameters_and_the_command_line_its_flags(command, trained):
    with pytest.raises(InputError) as refused:
        choose_device("tpu")
    assert refused.value.parameter == "device"
    assert InputError("no parameter is at fault").parameter is None
    said = with_flags("`min_pictures`, `split`=val and `axes`=seed=0,1: nothing of `these words`")
    assert said == "--min-pictures, --split val and --sweep seed=0,1: nothing of `these words`"
    found = command("eval", trained, "--device", "tpu")
    assert (found.status, found.error[:21]) == (2, "error: --device tpu: ")
