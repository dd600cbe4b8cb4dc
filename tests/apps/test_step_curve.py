"""Accuracy against T and η: from features made once, with paired differences, the best kept."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.curve import best_of, curve_of
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.evaluate.report import CurvePoint, EvaluationReport
from bilevel_apps.runs.build import episode_sampler, make_learner
from bilevel_apps.runs.load import load_run, steps_beyond
from bilevel_apps.scoring import feature_table as tables
from bilevel_apps.scoring import heads as head_scoring
from bilevel_apps.scoring.feature_table import episode_keys, feature_table
from bilevel_apps.scoring.heads import HeadScores, head_scores
from bilevel_apps.scoring.score import Score, episode_accuracies, score
from bilevel_data import open_store
from bilevel_meta.methods.hyper_representation import InnerLoop

CPU = torch.device("cpu")
INNER = [InnerLoop(*pair) for pair in ((0, 1.0), (1, 1.0), (4, 1.0), (9, 1.0), (9, 0.05))]
SPEC = {"way": 4, "shot": 2, "query": 3}


@pytest.fixture(scope="module")
def opened(store):
    return open_store(store)


def sampler_of(opened, *, rotations, seed=0):
    return episode_sampler(opened, "test", SPEC, keys="them", seed=seed, rotations=rotations)


def task_of(config, norm):
    task = make_learner(config(model__norm=norm, inner__lr=1.0), (16, 16, 1), CPU)
    for module in task.modules():  # running averages that are not those of a fresh network
        if hasattr(module, "running_mean"):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return task


@pytest.mark.parametrize("rotations", [False, True])
def test_keys_are_the_images_of_the_episodes(opened, rotations):
    sampler = sampler_of(opened, rotations=rotations)
    batch = sampler.batch(3, 4)
    for keys, pixels in zip(episode_keys(sampler, 3, 4), (batch.support, batch.query), strict=True):
        found = [np.rot90(sampler.split.images[key // 4], key % 4) for key in keys.flat]
        assert np.array_equal(np.stack(found), pixels.reshape(-1, 16, 16, 1))
    turned = episode_keys(sampler, 0, 20)[0] % 4
    assert set(turned.flat) == ({0, 1, 2, 3} if rotations else {0})


@pytest.mark.parametrize("norm", ["ghost", "batch", "support", "episode"])
@pytest.mark.parametrize("rotations", [False, True])
def test_every_t_and_step_size_is_scored_as_alone(opened, config, norm, rotations):
    task, sampler = task_of(config, norm), sampler_of(opened, rotations=rotations)
    table = feature_table(task, [sampler], episodes=7, device=CPU)
    assert (table is None) == (norm in ("support", "episode"))
    found = head_scores(task, sampler, inner=INNER, episodes=7, device=CPU, table=table)
    assert found.diverged == {}
    for loop in INNER:
        task.set_lr(loop.lr)
        alone = task.varied(steps=loop.steps).accuracies
        expected = episode_accuracies(alone, sampler, episodes=7, device=CPU)
        assert found.accuracies[loop].tolist() == expected.tolist()
    rows = {loop: tuple(row) for loop, row in found.accuracies.items()}
    assert len(set(rows.values())) > 3  # T matters here
    assert rows[INNER[-1]] != rows[INNER[-2]]  # and η


def test_an_image_is_encoded_once(opened, config, monkeypatch):
    task = task_of(config, "ghost")
    samplers = [sampler_of(opened, rotations=turned) for turned in (True, False)]
    seen, shares, whole = [], [], tables._encoded

    def watch(task, pixels, device):
        seen.extend(image.tobytes() for image in pixels)
        return whole(task, pixels, device)

    monkeypatch.setattr(tables, "_encoded", watch)
    monkeypatch.setattr(tables, "BATCH_PIXELS", 256 * 7)
    table = feature_table(task, samplers, episodes=9, device=CPU, progress=shares.append)
    assert len(seen) == len(set(seen)) == len(table.features)
    assert len(seen) < 9 * 2 * 4 * 5
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    turned = episode_keys(samplers[0], 0, 9)[1]
    assert table.of(turned).shape == (9, 12, task.backbone.dim)


def test_a_table_that_is_too_large_is_not_made(opened, config, monkeypatch):
    monkeypatch.setattr(tables, "TABLE_BYTES", 100)
    task, sampler = task_of(config, "ghost"), sampler_of(opened, rotations=False)
    assert feature_table(task, [sampler], episodes=3, device=CPU) is None


def test_heads_are_trained_in_parts(opened, config, monkeypatch):
    task, sampler = task_of(config, "ghost"), sampler_of(opened, rotations=False)
    table = feature_table(task, [sampler], episodes=5, device=CPU)
    own = task.inner
    whole = head_scores(task, sampler, inner=[own], episodes=5, device=CPU, table=table)
    monkeypatch.setattr(head_scoring, "FEATURE_BYTES", 2 * 20 * table.features[0].nbytes)
    done = []
    parts = head_scores(
        task, sampler, inner=[own], episodes=5, device=CPU, table=table, progress=done.append
    )
    assert done == [2, 4, 5]
    assert parts.accuracies[own].tolist() == whole.accuracies[own].tolist()


def test_divergence_costs_only_the_inner_loop_that_diverges(opened, config):
    task = make_learner(config(model__unit_length=False, inner__lr=1.0), (16, 16, 1), CPU)
    sampler = sampler_of(opened, rotations=False)
    none, far, near = InnerLoop(0, 1e38), InnerLoop(10, 1e38), InnerLoop(10, 0.1)
    found = head_scores(task, sampler, inner=[none, far, near], episodes=4, device=CPU)
    assert (found.accuracies.keys(), found.diverged.keys()) == ({none, near}, {far})
    assert "T = 10 inner steps" in found.diverged[far]
    assert found.accuracies[none].tolist() == [0.25] * 4


FOUND = HeadScores(
    accuracies={
        InnerLoop(1, 0.1): np.array([0.2, 0.4, 0.9]),
        InnerLoop(5, 0.1): np.array([0.3, 0.6, 0.9]),
    },
    diverged={InnerLoop(9, 0.1): "too far"},
)


def test_differences_are_paired():
    one, five, nine = curve_of(FOUND, InnerLoop(5, 0.1))
    assert [point.inner for point in (one, five, nine)] == [(1, 0.1), (5, 0.1), (9, 0.1)]
    paired = score(np.array([-0.1, -0.2, 0.0]))
    assert one.score.accuracy == pytest.approx(0.5)
    assert one.difference.accuracy == pytest.approx(-0.1)
    assert one.difference.ci95 == pytest.approx(paired.ci95)
    assert paired.ci95 < one.score.ci95 / 2  # what the episodes have in common has gone
    assert (five.difference.accuracy, five.difference.ci95) == (0.0, 0.0)
    assert nine == CurvePoint(inner=InnerLoop(9, 0.1), score=None, difference=None)
    diverged = {"steps": 9, "lr": 0.1, "accuracy": None, "ci95": None, "difference": None}
    assert nine.as_json() == diverged
    assert [CurvePoint.of(point.as_json(), 3) for point in (one, nine)] == [one, nine]


def test_the_best_of_equal_ones():
    found = ((1, 0.1, 0.5), (3, 0.1, 0.7), (3, 0.2, 0.7), (8, 0.1, 0.7), (9, 0.1, None))
    rows = [
        CurvePoint(
            inner=InnerLoop(steps, lr),
            score=None if a is None else Score(accuracy=a, ci95=0.1, episodes=9),
            difference=None,
        )
        for steps, lr, a in found
    ]
    assert best_of(rows, InnerLoop(1, 0.1)) is rows[1]
    assert best_of(rows, InnerLoop(1, 0.2)) is rows[2]
    assert best_of(rows, InnerLoop(8, 0.1)) is rows[3]
    assert best_of(rows, InnerLoop(9, 0.2)) is rows[2]


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_curve_as_json_and_picture(command, copy):
    words = ["eval", copy, "--split", "val", "--episodes", 12, "--steps", "8,1,3"]
    found = command(*words, "--json")
    assert found.status == 0, found.err
    report = json.loads(found.out)
    curve = {row["steps"]: row for row in report["curve"]}
    assert list(curve) == [1, 3, 5, 8]  # the run's own is among them
    assert report["steps"] == 5
    assert report["accuracy"] == curve[5]["accuracy"]
    for steps, row in curve.items():
        alone = json.loads(command(*words[:6], "--steps", steps, "--json").out)
        assert (alone["accuracy"], alone["ci95"]) == (row["accuracy"], row["ci95"])
        assert "curve" not in alone
    picture = copy / "steps-val.png"
    assert report["picture"] == str(picture)
    with Image.open(picture) as image:
        assert image.size[0] > 800
    assert not (copy / "chosen.json").exists()
    told = command(*words, "--plot", copy / "own.PNG")
    assert f"wrote {copy / 'own.PNG'}" in told.out
    rows = [line.split() for line in told.out.splitlines()]
    assert [row[0] for row in rows if row and row[0].isdecimal()] == ["1", "3", "5", "8"]


def test_choosing_t(command, copy):
    words = ["--split", "val", "--episodes", 12, "--steps", "0,1,3,8,20"]
    found = command("eval", copy, *words, "--choose", "--json")
    assert found.status == 0, found.err
    report = json.loads(found.out)
    best = best_of(EvaluationReport.of(report).curve, InnerLoop(5, report["lr"])).inner.steps
    assert report["chosen"] == {"steps": best, "lr": None}
    assert load_run(copy, "cpu").learner.steps == best
    choice = json.loads((copy / "chosen.json").read_text())
    assert (choice["steps"], choice["lr"]) == (best, None)
    assert choice["curve"] == report["curve"]
    later = json.loads(command("eval", copy, "--episodes", 12, "--json").out)
    assert (later["steps"], later["trained_steps"]) == (best, 5)


def test_a_grid_and_choosing_from_it(command, copy):
    words = ["eval", copy, "--split", "val", "--episodes", 12, "--json"]
    own = json.loads(command(*words).out)
    assert own["lr"] == own["trained_lr"] == pytest.approx(0.1, rel=0.2)
    learned = f"{own['lr']:.9g}"  # as a person copies it
    grid = ["--steps", "1,5,40", "--lr", f"1e-3,{learned},20"]
    report = json.loads(command(*words, *grid).out)
    curve = {InnerLoop(row["steps"], row["lr"]): row for row in report["curve"]}
    assert list(curve) == [InnerLoop(t, lr) for lr in (1e-3, own["lr"], 20.0) for t in (1, 5, 40)]
    for loop, row in curve.items():
        alone = json.loads(command(*words, "--steps", loop.steps, "--lr", loop.lr).out)
        assert (alone["steps"], alone["lr"], alone["accuracy"]) == (*loop, row["accuracy"])
    told = command(*words[:-1], *grid).out
    assert f"difference to T = 5, η = {own['lr']:.3g}" in told
    assert len([line for line in told.splitlines() if line.startswith(f"  {1e-3:8.3g}  ")]) == 3
    # One that is surely not the learned one.
    report = json.loads(command(*words, "--steps", 7, "--lr", "0.3,0.4", "--choose").out)
    best = best_of(EvaluationReport.of(report).curve, InnerLoop(7, own["lr"])).inner
    expected = None if best.lr == own["lr"] else best.lr
    assert report["chosen"] == {"steps": 7, "lr": expected}


def test_a_chosen_step_size_is_taken(command, copy):
    own = load_run(copy, "cpu")
    path = copy / "chosen.json"
    path.write_text(json.dumps({"steps": 9, "lr": 0.02, "checkpoint_sha256": own.sha256}))
    run = load_run(copy, "cpu")
    assert run.learner.inner == InnerLoop(9, pytest.approx(0.02, rel=1e-6))
    assert run.trained_inner == own.learner.inner == own.trained_inner
    words = ["eval", copy, "--split", "val", "--episodes", 12]
    asked = ["--steps", 9, "--lr", 0.02]
    chosen = json.loads(command(*words, "--json").out)
    path.unlink()
    given = json.loads(command(*words, *asked, "--json").out)
    assert chosen["accuracy"] == given["accuracy"]
    told = command(*words, *asked).out.splitlines()[0]
    assert f"T = 9 (trained with 5), η = 0.02 ({own.learner.inner.lr:.3g} after training)" in told
    # A curve over T alone keeps what was chosen before.
    path.write_text(json.dumps({"steps": 9, "lr": 0.02, "checkpoint_sha256": own.sha256}))
    again = json.loads(command(*words, "--steps", "3,9", "--choose", "--json").out)
    assert again["chosen"]["lr"] == pytest.approx(0.02, rel=1e-6)
    assert {row["lr"] for row in again["curve"]} == {again["chosen"]["lr"]}


def test_a_chosen_t_belongs_to_its_checkpoint(command, copy, capsys):
    path = copy / "chosen.json"
    path.write_text(json.dumps({"steps": 2, "checkpoint_sha256": "0" * 64}))
    assert load_run(copy, "cpu").learner.steps == 5
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path}: T = 2 was chosen for weights that are no longer")
    sha256 = load_run(copy, "cpu").sha256
    path.write_text(json.dumps({"steps": 2, "checkpoint_sha256": sha256}))
    assert load_run(copy, "cpu").learner.steps == 2
    head = command("eval", copy, "--episodes", 2).out.splitlines()[0]
    assert "T = 2 (trained with 5)" in head


DAMAGED = ["", "{", "[]", "3", '{"steps": 2}', '{"steps": true, "checkpoint_sha256": "x"}']
DAMAGED += ['{"steps": 2, "lr": 0.0, "checkpoint_sha256": "x"}']
DAMAGED += ['{"steps": 2, "lr": Infinity, "checkpoint_sha256": "x"}']
DAMAGED += ['{"steps": 2, "lr": true, "checkpoint_sha256": "x"}', '"steps"']
DAMAGED += ['{"steps": -1, "checkpoint_sha256": "x"}', '{"steps": 2, "checkpoint_sha256": 3}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_choice(command, copy, text):
    (copy / "chosen.json").write_text(text)
    found = command("eval", copy)
    assert found.status == 2
    assert found.error.startswith(f"error: {copy / 'chosen.json'}: damaged: delete it")


REFUSED = [
    (
        ["--choose", "--steps", "1,3"],
        "--choose with --split test: a head is chosen on the validation",
    ),
    (["--choose", "--steps", "1,3", "--split", "train"], "--choose with --split train"),
    (["--choose", "--split", "val"], "--choose: give several T or η"),
    (["--choose", "--split", "val", "--steps", "3", "--lr", "1"], "--choose: give several T or η"),
    (["--plot", "x.png"], "--plot: give several T or η to compare"),
    (["--plot", "x.pdf", "--steps", "1,3"], "--plot x.pdf: expected the name of a PNG file"),
    (["--plot", "/nowhere/x.png", "--steps", "1,3"], "--plot /nowhere/x.png: cannot write there"),
    (["--steps", "1,x"], "--steps 1,x: expected whole numbers"),
    (["--steps", "-1"], "--steps -1: expected whole numbers"),
    (["--steps", "1,,3"], "--steps 1,,3: expected whole numbers"),
    (["--lr", "0.1,x"], "--lr 0.1,x: expected numbers > 0 with commas between"),
    (["--lr", "0"], "--lr 0: expected numbers > 0"),
    (["--lr", "-0.1"], "--lr -0.1: expected numbers > 0"),
    (["--lr", "inf"], "--lr inf: expected numbers > 0"),
    (["--lr", "nan"], "--lr nan: expected numbers > 0"),
    (["--lr", ""], "--lr : expected numbers > 0"),
    (["--steps", "1234567890"], "--steps 1234567890: expected whole numbers"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=range(len(REFUSED)))
def test_unusable_curves(command, copy, arguments, says):
    before = sorted(path.name for path in copy.iterdir())
    found = command("eval", copy, *arguments)
    assert found.status == 2
    assert says in found.error
    assert sorted(path.name for path in copy.iterdir()) == before


def test_no_choice_on_the_classes_of_another_store(command, copy, make_store):
    other = make_store(seed=1)
    words = ["--split", "val", "--steps", "1,3", "--episodes", 2, "--data", other]
    found = command("eval", copy, *words, "--choose")
    assert found.status == 2
    assert f"{other}: its images of val are not those of the run's own store" in found.error
    assert command("eval", copy, *words).status == 0


def test_a_folder_that_cannot_be_written_costs_the_picture(copy, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda *_: False)
    request = EvaluationRequest(split="val", episodes=3, steps=(1, 3), device="cpu")
    report = evaluate_run(copy, request)
    assert report.picture is None
    assert len(report.curve) == 3
    assert "so there is no picture: choose a place with --plot" in capsys.readouterr().err


def test_own_divergence_is_status_1(command, tmp_path, config):
    from bilevel_apps.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from bilevel_apps.training.loop import train

    folder = tmp_path / "run"
    train(config(model__unit_length=False, train__steps=1), folder, resume=False)
    path = folder / "best.safetensors"
    whole = load_checkpoint(path)
    tensors = dict(whole.tensors) | {"model.log_lr": torch.tensor(80.0)}
    save_checkpoint(path, Checkpoint(tensors=tensors, record=whole.record))
    found = command("eval", folder, "--episodes", 3)
    assert found.status == 1
    line = found.err.splitlines()[-1]
    assert line.startswith("error: evaluating: the heads")
    assert line.endswith("or evaluate with a smaller --lr")


def test_one_episode_is_refused_before_any_is_scored(trained, monkeypatch):
    monkeypatch.setattr("bilevel_apps.evaluate.evaluate.load_run", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="episodes=1: fewer than two"):
        evaluate_run(trained, EvaluationRequest(episodes=1))


@pytest.mark.parametrize(
    ("asked", "warned"),
    [
        (("--steps", 9), True),
        (("--steps", 5), False),
        (("--steps", 9, "--lr", 0.05), False),
        (("--steps", "3,9"), False),
        (("--steps", "optimum"), False),
    ],
)
def test_more_steps_than_the_step_size_was_learned_for(command, copy, asked, warned):
    found = command("eval", copy, "--split", "val", "--episodes", 12, *asked)
    assert found.status == 0, found.err
    lines = [line for line in found.err.splitlines() if line.startswith("warning: ")]
    assert [("T = 9" in line, "T = 5" in line) for line in lines] == [(True, True)] * warned


def test_a_step_size_that_was_not_learned_may_take_more_steps(trained):
    run = load_run(trained, "cpu")
    assert steps_beyond(run, [9], None) is not None
    fixed = run.config.model_copy(
        update={"inner": run.config.inner.model_copy(update={"learn_lr": False})}
    )
    assert steps_beyond(replace(run, config=fixed), [9], None) is None
    run.representation.set_lr(0.5)  # one that was chosen later
    assert steps_beyond(run, [9], None) is None
