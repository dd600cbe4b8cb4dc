"""The items that train or show networks: tables 3 and 4, figures 5 and 6."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bilevel_apps.config import load_preset, parse_config, with_settings
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest as Evaluation
from bilevel_apps.evaluate.evaluate import evaluate_run
from bilevel_apps.paper import Scale, figure5, load_item
from bilevel_apps.paper.harness.cache import Part
from bilevel_apps.paper.harness.make import ItemRequest, run_item
from bilevel_apps.paper.trained import figure6, table3, table4
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.chosen_inner import ChosenInner, save_choice
from bilevel_apps.runs.folder import RunFolder
from bilevel_data import SourceData, SourceSplit, open_store, write_store
from bilevel_data.sources import load_source

KEPT = ("licence", "source", "preprocessing", "rotations_are_classes")
FEW = (
    "model.filters=4",
    "train.steps=10",
    "train.meta_batch=1",
    "train.way=5",
    "train.validate_every=5",
    "train.validate_episodes=4",
)


@pytest.fixture(autouse=True)
def few_episodes(monkeypatch):
    monkeypatch.setattr(table3, "EPISODES", {False: 8, True: 8})
    for item in (table4, figure6):
        monkeypatch.setattr(item, "EPISODES", 8)


@pytest.fixture(scope="module")
def named(tmp_path_factory, make_store):
    """Write the tiny store under another data set's name."""

    def make(name, **options):
        store = open_store(make_store(**options))
        splits = tuple(
            SourceSplit(
                name=split.name,
                class_names=split.class_names,
                class_sizes=tuple(split.class_sizes.tolist()),
                image_shape=split.images.shape[1:],
                images=[split.images[a:b] for a, b in pairwise(split.offsets)],
            )
            for split in map(store.load, store.splits)
        )
        kept = {key: getattr(store.manifest, key) for key in KEPT}
        path = tmp_path_factory.mktemp("named") / f"{name}.h5"
        write_store(path, SourceData(name=name, splits=splits, **kept))
        return path

    return make


@pytest.fixture(scope="module")
def characters(named):
    return named("omniglot")


def request(out, *stores, **options):
    return ItemRequest(**{"out": out, "track": False, "data": stores, **options})


def computed(name, out, *stores, **options):
    options.setdefault("assignments", FEW if load_item(name).trains else ())
    return run_item(load_item(name), request(out, *stores, **options))


def test_a_cell_is_a_run_that_is_scored_as_any_other(tmp_path, characters):
    only = ("omniglot-5way-1shot",)
    report, document = computed("table3", tmp_path, characters, only=only)
    (row,) = report.rows
    folder = tmp_path / "table3" / "quick" / "omniglot-5way-1shot-seed-0"
    again = evaluate_run(folder, Evaluation(data=characters, episodes=8)).as_json()
    assert row["accuracy"] == pytest.approx(100 * again["accuracy"])
    assert row["upright"] == pytest.approx(100 * again["upright"]["accuracy"])
    assert (row["normalisation"], row["T"], row["paper"]) == ("ghost", again["steps"], 98.6)
    assert again["checkpoint_sha256"].startswith(row["checkpoint"])
    words = document["run"]["command"].split()
    assert words[:4] == ["bilevel-paper", "table3", "--scale", "quick"]
    assert "--data omniglot.h5 --only omniglot-5way-1shot" in document["run"]["command"]
    assert str(tmp_path) not in json.dumps({k: v for k, v in document.items() if k != "files"})


def test_what_is_recorded_is_not_trained_or_scored_again(tmp_path, characters, monkeypatch):
    only = ("omniglot-5way-1shot",)
    first, _ = computed("table3", tmp_path, characters, only=only)

    def never(*_arguments, **_options):
        raise AssertionError

    monkeypatch.setattr("bilevel_apps.paper.trained.cells.train", never)
    monkeypatch.setattr("bilevel_apps.paper.trained.cells.evaluate_run", never)
    second, _ = computed("table3", tmp_path, characters, only=only)
    assert second.rows == first.rows


def test_a_training_without_its_record_goes_on_where_it_was(tmp_path, characters):
    only = ("omniglot-5way-1shot",)
    first, _ = computed("table3", tmp_path, characters, only=only)
    record = tmp_path / "table3" / "quick" / "omniglot-5way-1shot-seed-0.json"
    record.unlink()
    second, _ = computed("table3", tmp_path, characters, only=only)
    assert second.rows == first.rows
    assert second.details[0]["from_step"] == 10
    assert first.details[0]["from_step"] == 0
    assert "resumed" in second.cost


def test_more_hyper_iterations_go_on_with_a_training(tmp_path, characters):
    only = ("omniglot-5way-1shot",)
    constant = (*FEW, "train.schedule=constant")
    first, _ = computed("table3", tmp_path, characters, only=only, assignments=constant)
    longer = (*constant, "train.steps=14")
    second, _ = computed("table3", tmp_path, characters, only=only, assignments=longer)
    assert [report.rows[0]["hyper-iterations"] for report in (first, second)] == [10, 14]
    # The seconds are those of both, and nothing was lost in between.
    assert second.details[0]["trained_seconds"] > first.details[0]["trained_seconds"]
    assert second.details[0]["from_step"] == 0
    assert "resumed" not in second.cost


def test_other_settings_do_not_continue_a_training(tmp_path, characters):
    only = ("omniglot-5way-1shot",)
    computed("table3", tmp_path, characters, only=only)
    with pytest.raises(InputError, match=r"train\.lr"):
        computed("table3", tmp_path, characters, only=only, assignments=(*FEW, "train.lr=1e-2"))


def test_a_run_in_the_place_of_a_training(tmp_path, characters, trained):
    only, runs = ("omniglot-5way-1shot",), (f"omniglot-5way-1shot={trained}",)
    report, document = computed(
        "table3", tmp_path, characters, only=only, runs=runs, assignments=()
    )
    (row,) = report.rows
    sha256 = load_checkpoint(trained / "best.safetensors").file_sha256
    assert sha256.startswith(row["checkpoint"])
    assert row["hyper-iterations"] == 6
    assert document["run"]["command"].endswith("--run omniglot-5way-1shot=trained --out DIR")


def test_a_run_is_scored_on_the_episodes_of_the_cell(tmp_path, characters, trained):
    """And not on those that it was trained for: the figure stands beside the paper's."""
    only, runs = ("omniglot-5way-5shot",), (f"omniglot-5way-5shot={trained}",)
    report, _ = computed("table3", tmp_path, characters, only=only, runs=runs, assignments=())
    asked = Evaluation(data=characters, episodes=8, way=5, shot=5)
    assert report.rows[0]["accuracy"] == 100 * evaluate_run(trained, asked).score.accuracy


def test_a_run_of_something_else_is_refused(tmp_path, characters, trained):
    with pytest.raises(InputError, match=r"approx=.*: a run with method=hyper-representation, but"):
        computed("table4", tmp_path, characters, runs=(f"approx={trained}",))
    cell = "paper/omniglot-5way-1shot"
    with pytest.raises(InputError, match=r"a run with model\.norm=ghost, but the cell is of"):
        computed(
            "table3",
            tmp_path,
            characters,
            only=(cell,),
            runs=(f"{cell}={trained}",),
            assignments=(),
        )


def test_another_choice_of_t_is_another_result(tmp_path, characters, trained):
    only, runs = ("omniglot-5way-1shot",), (f"omniglot-5way-1shot={tmp_path / 'run'}",)
    shutil.copytree(trained, tmp_path / "run")

    def steps():
        report, _ = computed("table3", tmp_path, characters, only=only, runs=runs, assignments=())
        return report.rows[0]["T"]

    assert steps() == 5
    sha256 = load_checkpoint(tmp_path / "run" / "best.safetensors").file_sha256
    save_choice(tmp_path / "run", ChosenInner(2, 0.3), {"checkpoint_sha256": sha256})
    assert steps() == 2


def test_omniglot_at_full_scale_is_one_training(tmp_path, characters):
    only = ("omniglot-5way-1shot", "omniglot-5way-5shot")
    options = {"scale": Scale.FULL, "only": only, "assignments": (*FEW, "train.way=5")}
    report, _ = computed("table3", tmp_path, characters, **options)
    folder = tmp_path / "table3" / "full"
    folders = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    assert folders == ["omniglot-20way-1shot-long-seed-0"]
    assert [row["T"] for row in report.rows] == [None, None]
    assert report.rows[0]["checkpoint"] == report.rows[1]["checkpoint"]
    one, five = report.details
    assert one["trained_seconds"] < five["trained_seconds"] < one["trained_seconds"] + 1
    assert five["from_step"] == 0
    assert report.cost["hyper-iterations"] == [10]  # of one training, however many cells it has
    later, _ = computed(
        "table3", tmp_path, characters, **{**options, "only": ("omniglot-20way-1shot",)}
    )
    (twenty,) = later.details
    assert one["trained_seconds"] < twenty["trained_seconds"] < one["trained_seconds"] + 2
    assert (twenty["from_step"], "resumed" in later.cost) == (0, False)


def scored(accuracy, **more):
    """A part with an accuracy of an interval of one per cent."""
    pixels = {"raw-pixel nearest neighbour": {"accuracy": 0.4, "ci95": 0.01}}
    sizes = {"way": 5, "shot": 1, "query": 15, "episodes": 100, "steps": 5, "lr": 0.1, "seed": 0}
    where = {"norm": "ghost", "split": "test", "split_sha256": "", "rotations": False}
    found = {"accuracy": accuracy, "ci95": 0.01, "baselines": pixels, "checkpoint_sha256": ""}
    result = sizes | where | found | more
    return [Part(key="", seconds=0.0, result=result)]


def test_what_table3_claims():
    found = {
        "omniglot-5way-1shot": scored(0.98),
        "omniglot-5way-5shot": scored(0.999),
        "omniglot-20way-1shot": scored(0.94),
    }
    assert [claim.holds for claim in table3._claims(found, full=False)] == [True, False, True]
    wide = found | {"omniglot-5way-1shot": scored(0.96)}
    assert [claim.holds for claim in table3._claims(wide, full=False)] == [True, True, False]
    low = found | {"omniglot-20way-1shot": scored(0.415)}
    assert not table3._claims(low, full=False)[0].holds
    *_, reached = table3._claims(found, full=True)
    assert not reached.holds
    assert "2 of 3, not omniglot-20way-1shot" in reached.found
    *_, reached = table3._claims({"omniglot-20way-1shot": scored(0.946)}, full=True)
    assert reached.holds


def test_table3_takes_the_store_of_each_cell(tmp_path, characters, named):
    glyphs = named("glyphs", seed=1)
    with pytest.raises(InputError, match=r"is about mini-imagenet and omniglot, but .* glyphs"):
        computed("table3", tmp_path, glyphs, scale=Scale.FULL)
    with pytest.raises(InputError, match="no store of mini-imagenet: give it with `data` too"):
        computed(
            "table3",
            tmp_path,
            characters,
            scale=Scale.FULL,
            only=("mini-imagenet-c4l-5way-1shot",),
        )
    only = ("omniglot-5way-1shot",)
    report, _ = computed("table3", tmp_path, glyphs, only=only)
    assert [(row["data"], row["paper"]) for row in report.rows] == [("glyphs", None)]


@pytest.mark.slow
def test_table4_has_all_rows_from_the_same_budget(tmp_path, characters):
    report, document = computed("table4", tmp_path, characters)
    assert [row["method"] for row in report.rows] == list(table4.PAPER)
    counts = {row["method"]: row["hyper-iterations"] for row in report.rows}
    assert counts.pop("classic-train") == 2  # of 5 passes through the backbone each
    assert set(counts.values()) == {10}
    assert {row["outer steps"] for row in report.rows} == {10}
    filters = {row["method"]: row["filters"] for row in report.rows}
    assert filters.pop("multiclass") == 8
    assert set(filters.values()) == {4}
    assert document["settings"]["approx"].startswith("method=approx, train.meta_batch=4")
    assert (tmp_path / "table4.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("paper/mini-imagenet-c4l-5way-1shot", []),
        ("paper/omniglot-5way-1shot", ["model.filters=16"]),
        ("paper/mini-imagenet-c4l-5way-1shot", ["train.meta_batch=8", "train.shot=5"]),
        ("paper/mini-imagenet-c4l-5way-1shot", ["train.way=20", "train.accumulate=2"]),
    ],
)
def test_table4_gives_multiclass_as_much_work(preset, changes):
    """Of the other rows' images a quarter, for a network of twice the filters."""
    common = parse_config(with_settings(load_preset(preset), changes), "test")
    wider = parse_config(with_settings(load_preset(preset), [*changes, *table4._wider(common)]), "")

    def images(config):
        train, episode = config.train, config.episode
        shot, query = train.shot or episode.shot, train.query or episode.query
        return train.meta_batch * (train.way or episode.way) * (shot + query)

    assert 4 * images(wider) == images(common)
    assert wider.model.filters == 2 * (common.model.filters or 32)


def test_a_network_whose_filters_are_not_known():
    changed = with_settings(load_preset("paper/mini-imagenet-c4l-5way-1shot"), ["model.name=rn"])
    with pytest.raises(
        InputError, match=r"those of rn are not known: give `assignments`=model\.filters=N"
    ):
        table4._wider(parse_config(changed, "test"))


def test_what_table4_claims():
    rivals = {name: scored(0.5) for name in table4.PAPER if name != table4.OURS}
    found = rivals | {table4.OURS: scored(0.53)}
    claims = table4._claims(found, full=False)
    assert [claim.holds for claim in claims] == [True] * 4
    assert len(table4._claims(found, full=True)) == 5
    near = found | {"approx": scored(0.515)}
    assert [claim.holds for claim in table4._claims(near, full=False)].count(False) == 1
    # Of several seeds the worst of ours and the best of theirs.
    seeds = found | {table4.OURS: scored(0.53) + scored(0.51)}
    assert not any(claim.holds for claim in table4._claims(seeds, full=False))
    (alone,) = table4._claims({"approx": scored(0.3)}, full=False)
    assert alone.holds
    (chance,) = table4._claims({"approx": scored(0.2)}, full=False)
    assert not chance.holds


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend
def test_table4_draws_the_curves_that_the_tracker_has(tmp_path, characters, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    only = ("approx", "hyper-representation")
    report, _ = run_item(
        load_item("table4"),
        ItemRequest(out=tmp_path / "out", data=(characters,), only=only, assignments=FEW),
    )
    steps = [row["hyper-iterations"] for row in report.details]
    assert steps == [5, 10, 5, 10]
    assert all(0 < row["validation accuracy"] <= 1 for row in report.details)
    assert len(report.picture().axes) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("moved", [False, True], ids=["where it was", "beside another database"])
def test_the_curve_of_a_training_that_goes_on_is_whole(tmp_path, characters, monkeypatch, moved):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    asked = ItemRequest(
        out=tmp_path / "a" / "out", data=(characters,), only=("approx",), assignments=FEW
    )
    first, _ = run_item(load_item("table4"), asked)
    if moved:
        shutil.copytree(tmp_path / "a" / "out", tmp_path / "b" / "out")
        asked = replace(asked, out=tmp_path / "b" / "out")
    longer = replace(asked, assignments=(*FEW, "train.steps=15"))
    report, _ = run_item(load_item("table4"), longer)
    assert [row["hyper-iterations"] for row in report.details] == [5, 10, 15]
    assert report.details[:2] == first.details
    seconds = [row["seconds"] for row in report.details]
    assert seconds == sorted(seconds)


def test_figure6(tmp_path, characters):
    report, _ = computed("figure6", tmp_path, characters, only=("T-3", "T-12"))
    assert [row["T"] for row in report.rows] == [3, 12]
    own = {(row["trained with"], row["T"]): row["accuracy"] for row in report.details}
    for row in report.rows:
        assert 100 * own[row["T"], row["T"]] == pytest.approx(row["accuracy"])
        assert row["with the best T"] >= row["accuracy"]


def test_figure6_of_another_network_with_its_own_fixed_step_size(tmp_path, characters):
    chosen = (*FEW, "model.name=c4l", "inner.lr=0.02")
    report, _ = computed("figure6", tmp_path, characters, only=("T-3", "T-5"), assignments=chosen)
    assert [row["T"] for row in report.rows] == [3, 5]
    best = max(report.rows, key=lambda row: row["accuracy"])
    assert report.settings["maximum"].startswith(f"T = {best['T']}, {best['accuracy']:.2f}")
    config = RunFolder(tmp_path / "figure6" / "quick" / "T-3-seed-0").load_config()
    assert (config.model.name, config.inner.lr, config.inner.learn_lr) == ("c4l", 0.02, False)


def test_figure6_compares_all_seeds():
    low, high = (scored(a, steps=3, checkpoint_step=c)[0] for a, c in ((0.6, 300), (0.9, 100)))
    many = scored(0.7, steps=12, checkpoint_step=200)[0]
    for full in (False, True):
        assert figure6._claims([low, many], full=full)[1].holds
        assert not figure6._claims([low, high, many], full=full)[1].holds


def test_what_is_of_no_use_to_the_cells_that_are_computed(tmp_path, characters, trained):
    paper = "paper/omniglot-5way-1shot"
    with pytest.raises(InputError, match=f"{paper} is not among what is computed: name it with"):
        computed("table3", tmp_path, characters, runs=(f"{paper}={trained}",))
    cell = "omniglot-5way-1shot"
    with pytest.raises(InputError, match="nothing is trained where every part has a run"):
        computed("table3", tmp_path, characters, only=(cell,), runs=(f"{cell}={trained}",))


def test_figure6_refuses_a_run_with_a_chosen_t(tmp_path, characters, trained):
    shutil.copytree(trained, tmp_path / "run")
    sha256 = load_checkpoint(tmp_path / "run" / "best.safetensors").file_sha256
    save_choice(tmp_path / "run", ChosenInner(12, 0.3), {"checkpoint_sha256": sha256})
    with pytest.raises(InputError, match="another T than that of its training was chosen for it"):
        computed(
            "figure6",
            tmp_path,
            characters,
            only=("T-12",),
            runs=(f"T-12={tmp_path / 'run'}",),
            assignments=(),
        )


def test_figure6_takes_runs_of_the_cell_alone(tmp_path, characters, trained):
    with pytest.raises(InputError, match=r"a run with inner\.steps=5, but the cell is of inner"):
        computed(
            "figure6",
            tmp_path,
            characters,
            only=("T-3",),
            runs=(f"T-3={trained}",),
            assignments=(),
        )


def test_what_figure6_claims():
    first = scored(0.5, steps=3, checkpoint_step=900)[0]
    last = scored(0.6, steps=12, checkpoint_step=300)[0]
    assert [claim.holds for claim in figure6._claims([first, last], full=False)] == [True, True]
    assert [claim.holds for claim in figure6._claims([first, last], full=True)] == [True, True]
    swapped = [
        replace(first, result={**first.result, "steps": 12}),
        replace(last, result={**last.result, "steps": 3}),
    ]
    assert [claim.holds for claim in figure6._claims(swapped, full=False)] == [True, False]
    assert [claim.holds for claim in figure6._claims(swapped, full=True)] == [True, False]


def test_figure5_of_a_run(tmp_path, characters, trained):
    report, _ = computed("figure5", tmp_path, characters, runs=(str(trained),), seeds=1)
    rows = {row["figure"]: row for row in report.rows}
    near, far = (rows[f"distance of the {kind} pairs"] for kind in ("nearest", "farthest"))
    assert near["features"] < far["features"]
    assert 0 <= rows["neighbour_accuracy"]["features"] <= 1
    assert (tmp_path / "figure5.svg").exists()


def test_what_figure5_claims():
    def part(features, pixels):
        result = {
            "representation": dict.fromkeys(("neighbour_accuracy", "silhouette"), features),
            "pixels": dict.fromkeys(("neighbour_accuracy", "silhouette"), pixels),
        }
        return Part(key="", seconds=0.0, result=result)

    assert all(claim.holds for claim in figure5._claims([part(0.9, 0.3), part(0.8, 0.3)]))
    assert not any(claim.holds for claim in figure5._claims([part(0.9, 0.3), part(0.2, 0.3)]))


def test_pixel_distance_is_the_root_mean_square():
    a, b = np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 51, np.uint8)
    pair = figure5.Pair(numbers=(0, 0), images=(a, b), features=(a, b), distance=0.0)
    assert figure5._pixel_distance(pair) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("table3", {}, "no data: give `data`=FILE.h5"),
        ("figure5", {}, "no data: give `data`=FILE.h5"),
        ("table3", {"only": ("omniglot",)}, "`only`=omniglot: table3 has no such part: choose one"),
        ("figure1", {"only": ("x",)}, "`only`=x: figure1 has no such part: choose none"),
        (
            "figure1",
            {"assignments": ("seed=1",)},
            "figure1 trains no network: leave `assignments` out",
        ),
        ("figure1", {"runs": ("x",)}, "figure1 shows no run: leave `runs` out"),
        ("table3", {"runs": ("x",)}, "`runs`=x: expected PART=DIR with PART one of omniglot-5way"),
        ("table4", {"runs": ("approx=",)}, "expected PART=DIR"),
        ("table4", {"runs": ("approx=a", "approx=b")}, "`runs`=approx=b: a was given for the same"),
        (
            "table4",
            {"only": ("approx",), "runs": ("multiclass=a",)},
            "`only` leaves multiclass out",
        ),
        ("table4", {"assignments": ("method=approx",)}, "are what they are by their method"),
        ("figure6", {"assignments": ("inner.steps=2",)}, "are what they are by their inner.steps"),
        ("figure6", {"assignments": ("inner={steps: 2}",)}, "what they are by their inner.steps"),
        ("table3", {"assignments": ("model.name=c4l",)}, "are what they are by their model.name"),
        ("table4", {"assignments": ("seed=7",)}, "`assignments`=seed: use `seeds` for it"),
        ("table3", {"assignments": ("data=x.h5",)}, "`assignments`=data: use `data` for it"),
        ("figure6", {"assignments": ("tracking.enabled=true",)}, "use `track` for it"),
        ("table5", {"data": (Path("x.h5"),)}, "`data`=x.h5: table5 takes no store"),
    ],
)
def test_options_that_an_item_cannot_use(tmp_path, name, options, message):
    with pytest.raises(InputError) as refused:
        run_item(load_item(name), request(tmp_path / "out", **options))
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_two_stores_of_one_data_set(tmp_path, characters, named):
    with pytest.raises(InputError, match="is of omniglot too: give one of them"):
        computed("table3", tmp_path, characters, named("omniglot", seed=1))


def test_an_item_takes_the_store_that_it_is_about(tmp_path, characters, named):
    other = named("glyphs")
    taken = []
    item = replace(load_item("figure5"), run=lambda work: taken.append(work.data) or 1 / 0)
    for stores in ((other, characters), (characters, other), (other,)):
        with pytest.raises(Exception, match="figure5"):
            run_item(item, request(tmp_path, *stores))
    assert taken == [characters, characters, other]


REAL = Path(__file__).parents[3] / "shared" / "data" / "omniglot"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Omniglot where it is at hand, and else characters that are drawn."""
    data = load_source("omniglot", REAL) if REAL.is_dir() else load_source("glyphs")
    path = tmp_path_factory.mktemp("pictures") / "characters.h5"
    write_store(path, data)
    return path


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["table3", "table4", "figure5", "figure6"])
def test_the_claims_hold_at_quick(name, tmp_path, monkeypatch, pictures):
    monkeypatch.undo()  # as many episodes as the items have
    report, _ = run_item(load_item(name), request(tmp_path, pictures))
    assert [claim.text for claim in report.claims if not claim.holds] == []
