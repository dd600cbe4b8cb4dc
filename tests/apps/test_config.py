"""Configuration: presets, assignments, refusals, and a round trip through YAML."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bilevel_apps.config import (
    Config,
    describe_keys,
    dump_config,
    list_presets,
    load_config,
    load_preset,
    parse_config,
    with_settings,
)
from bilevel_apps.config.safe_yaml import parse_yaml
from bilevel_apps.errors import InputError


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


def assigned(*assignments):
    return parse_config(with_settings({}, assignments), "--set")


@pytest.mark.parametrize("name", list_presets())
def test_presets_parse(name):
    config = parse_config(load_preset(name), name)
    assert config.model_fields_set >= {"episode", "model", "train"}


def test_presets_are_those_documented():
    tasks = ("5way-1shot", "5way-5shot", "20way-1shot", "20way-5shot")
    own = {f"omniglot-{task}" for task in tasks}
    own |= {f"mini-imagenet-{model}-5way-{n}shot" for model in ("c4l", "rn") for n in (1, 5)}
    paper = {f"paper/{name}" for name in own}
    assert set(list_presets()) >= {"glyphs-5way-1shot"} | own | paper


@pytest.mark.parametrize(("way", "shot"), [(5, 1), (5, 5), (20, 1), (20, 5)])
@pytest.mark.parametrize("prefix", ["", "paper/"])
def test_presets_solve_the_task_that_they_name(prefix, way, shot):
    name = f"{prefix}omniglot-{way}way-{shot}shot"
    config = parse_config(load_preset(name), name)
    assert (config.episode.way, config.episode.shot) == (way, shot)
    assert config.episode.rotations is True
    assert config.model.name == "omniglot-net"


@pytest.mark.parametrize(("way", "meta_batch"), [(5, 32), (20, 16)])
@pytest.mark.parametrize("shot", [1, 5])
def test_paper_presets_have_the_papers_settings(way, shot, meta_batch):
    flat = parse_config(load_preset(f"paper/omniglot-{way}way-{shot}shot"), "preset").flat()
    expected = {
        "train.meta_batch": meta_batch,
        "train.lr": 1e-3,
        "train.schedule": "paper",
        "train.weight_decay": 0.0,
        "train.way": None,
        "train.shot": None,
        "train.query": None,
        "model.norm": "episode",
        "model.unit_length": False,
        "inner.lr": 0.1,
        "inner.learn_lr": False,
        "inner.scale": 1.0,
        "inner.learn_scale": False,
        "episode.query": 15,
    }
    assert {key: flat[key] for key in expected} == expected
    assert flat["inner.steps"] in (4, 5)


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("model", ["c4l", "rn"])
@pytest.mark.parametrize("prefix", ["", "paper/"])
def test_mini_imagenet_presets_solve_the_task_that_they_name(prefix, model, shot):
    name = f"{prefix}mini-imagenet-{model}-5way-{shot}shot"
    config = parse_config(load_preset(name), name)
    assert (config.episode.way, config.episode.shot, config.episode.query) == (5, shot, 15)
    assert config.episode.rotations is False
    assert config.model.name == model
    assert config.model.norm == ("episode" if prefix else "ghost")
    assert config.train.meta_batch % config.train.accumulate == 0


@pytest.mark.parametrize(
    ("model", "shot", "eta", "meta_batch"),
    [("c4l", 1, 0.01, 4), ("c4l", 5, 0.01, 2), ("rn", 1, 0.04, 2), ("rn", 5, 0.04, 2)],
)
def test_paper_presets_of_mini_imagenet(model, shot, eta, meta_batch):
    name = f"paper/mini-imagenet-{model}-5way-{shot}shot"
    flat = parse_config(load_preset(name), name).flat()
    expected = {
        "inner.lr": eta,
        "inner.learn_lr": False,
        "inner.scale": 1.0,
        "inner.learn_scale": False,
        "inner.steps": 5,
        "model.unit_length": False,
        "train.meta_batch": meta_batch,
        "train.lr": 1e-3,
        "train.schedule": "paper",
        "train.optimizer": "adamw",
        "train.weight_decay": 0.0,
        "train.validate_every": 1000,
        "train.validate_episodes": 600,
        "train.patience": 40,
        "train.augment": None,
        "train.average": None,
        "train.label_smoothing": 0.0,
        "train.clip": None,
        "train.way": None,
        "train.shot": None,
        "train.query": None,
    }
    assert {key: flat[key] for key in expected} == expected


def test_unknown_preset_names_the_known_ones():
    message = refused(load_preset, "omniglot")
    assert "omniglot: no such preset" in message
    assert "paper/omniglot-5way-1shot" in message
    assert "no such preset" in refused(load_preset, "../presets/glyphs-5way-1shot")


@pytest.mark.parametrize(
    "key",
    [
        "train.steps",
        "train.meta_batch",
        "train.lr",
        "inner.steps",
        "inner.lr",
        "inner.learn_lr",
        "episode.way",
        "episode.shot",
        "episode.query",
        "model.name",
        "model.norm",
        "method",
        "seed",
        "threads",
    ],
)
def test_keys_that_users_rely_on(key):
    assert key in describe_keys()
    assert key in Config().flat()


def test_every_key_is_described_with_its_default():
    described = describe_keys()
    assert described.keys() == Config().flat().keys()
    for key, value in Config().flat().items():
        shown, _, meaning = described[key].partition(" ")
        assert yaml.safe_load(shown) == value
        assert meaning.strip()


def test_assignments_are_yaml():
    config = assigned(
        "train.steps=7", "train.lr=1e-2", "inner.learn_lr=false", "model.norm=episode", "seed=3"
    )
    assert config.train.steps == 7
    assert config.train.lr == 0.01
    assert config.inner.learn_lr is False
    assert config.model.norm == "episode"
    assert config.seed == 3
    assert assigned("threads=null").threads is None
    assert assigned("data=a=b.h5").data == "a=b.h5"


@pytest.mark.parametrize(
    "value", ["!!int ''", "!!bool x", "!!timestamp x", "!!float", "!!python/name:os.system", "! x"]
)
def test_types_are_not_named(value):
    message = refused(with_settings, {}, [f"options={{a: {value} }}"])
    assert message.endswith(": line 1: a tag (!) names a type: remove it")


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-3", 0.005), ("1E3", 1000.0), ("-2.5e3", -2500.0), (".5e1", 5.0), ("3.e-2", 0.03)],
)
def test_a_number_may_have_an_exponent_alone(text, value):
    found = assigned(f"options.step_size={text}")
    assert found.options == {"step_size": value}
    assert isinstance(found.options["step_size"], float)
    # What is text stays text, also when it has been written and read.
    named = parse_config({"options": {"name": text}}, "test")
    again = parse_config(parse_yaml(dump_config(named), "again"), "again")
    assert again.options == {"name": text}


@pytest.mark.parametrize("text", ["e5", "1e", "5e-3s", "1e5e5", "0x1e-", "e"])
def test_what_only_looks_like_a_number_stays_text(text):
    assert assigned(f"options.name={text}").options == {"name": text}


def test_the_last_assignment_wins_and_the_rest_stays():
    given = {"train": {"steps": 1, "lr": 0.5}}
    changed = with_settings(given, ["train.steps=2", "train.steps=3"])
    assert changed == {"train": {"steps": 3, "lr": 0.5}}
    assert given == {"train": {"steps": 1, "lr": 0.5}}


@pytest.mark.parametrize("assignment", ["train.steps", "=3", "", "train.steps:3"])
def test_not_an_assignment(assignment):
    assert "expected KEY=VALUE" in refused(with_settings, {}, [assignment])


@pytest.mark.parametrize("value", ["[1", "2001-99-99", "'a"])
def test_a_value_that_is_not_yaml(value):
    message = refused(with_settings, {}, [f"train.steps={value}"])
    assert message.startswith(f"`assignments`=train.steps={value}: not valid YAML")


def test_a_value_is_not_a_section():
    assert "seed is a value" in refused(with_settings, {"seed": 1}, ["seed.x=1"])
    assert "train: " in refused(assigned, "train=5")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.step", "train.steps"),
        ("trian.steps", "train?"),
        ("inner.learn_rl", "inner.learn_lr"),
    ],
)
def test_unknown_key_with_a_suggestion(key, meant):
    message = refused(assigned, f"{key}=3")
    assert message.startswith(f"--set: unknown key {key.partition('.')[0]}")
    assert f"did you mean {meant}" in message


def test_unknown_key_without_one():
    assert "known keys: seed, threads" in refused(assigned, "zzzzzz=3")


@pytest.mark.parametrize(
    "assignment",
    [
        "train.steps=true",
        "train.steps=1.5",
        "train.steps=abc",
        "train.steps=-1",
        "train.steps=0",
        "train.steps=null",
        "train.steps=.nan",
        "train.steps=[1]",
        "train.lr=0",
        "train.lr=-1.0",
        "train.lr=.nan",
        "train.lr=nan",
        "train.lr=.inf",
        "train.lr=abc",
        "train.lr=true",
        "train.weight_decay=-1",
        "train.weight_decay=false",
        "inner.steps=-1",
        "inner.learn_lr=1",
        "inner.learn_lr=maybe",
        "model.norm=layer",
        "model.name=3",
        "device=tpu",
        "precision=float16",
        "seed=-1",
        "seed=true",
        f"seed={2**64}",
        "threads=0",
        "threads=1000000",
        "tracking.uri=[a]",
        "train.shot=0",
        "train.shot=true",
        "train.shot=1.5",
        "train.shot=[10, 1]",
        "train.shot=[0, 3]",
        "train.shot=[1, 2, 3]",
        "train.shot=[1]",
        "train.shot=[1, true]",
        "train.way=[]",
        "train.way=many",
        "train.minutes=0",
        "train.minutes=true",
        "train.validate_episodes=1",
        "train.patience=0",
        "train.patience=1.5",
        "train.accumulate=0",
        "train.clip=0",
        "train.clip=.inf",
        "train.average=0",
        "train.average=1",
        "train.average=true",
        "train.label_smoothing=1",
        "train.label_smoothing=-0.1",
        "train.optimizer=adam",
        "train.schedule=linear",
        "train.augment=3",
        "train.augment=true",
        "model.kernel_size=2",
        "model.kernel_size=true",
        "model.outputs=0",
        "model.outputs=true",
        "method=Approx",
        "method=null",
    ],
)
def test_wrong_values_are_named(assignment):
    key, _, value = assignment.partition("=")
    message = refused(assigned, assignment)
    assert message.startswith(f"--set: {key}: ")
    assert message.endswith(f", found {yaml.safe_load(value)!r}")


def test_changes_of_images_are_a_list_or_one():
    assert assigned("train.augment=[crop, flip]").train.augment == ("crop", "flip")
    assert assigned("train.augment=flip").flat()["train.augment"] == ["flip"]
    assert assigned("train.augment=null").train.augment is None
    message = refused(assigned, "train.augment=[flip, turn]")
    assert message.startswith("--set: train.augment.1: input should be 'affine', 'crop', ")
    assert message.endswith("found 'turn'")


def test_numbers_of_a_training_may_be_ranges():
    config = assigned("train.shot=[1,10]", "train.way=20")
    assert (config.train.shot, config.train.way) == ((1, 10), 20)
    assert config.flat()["train.shot"] == [1, 10]
    assert parse_config(yaml.safe_load(dump_config(config)), "again") == config


def test_a_large_value_is_shortened():
    message = refused(parse_config, {"train": {"steps": "x" * 10_000}}, "test")
    assert len(message) < 200


def test_boundaries_are_allowed():
    config = assigned("inner.steps=0", "seed=0", "train.weight_decay=0", f"seed={2**63 - 1}")
    assert config.inner.steps == 0
    assert config.seed == 2**63 - 1


def test_configurations_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


@pytest.mark.parametrize(
    "text",
    [
        "train: [",
        "- 1\n- 2",
        "abc",
        "7",
        "a: b: c",
        "\tx: 1",
        "seed: 2001-99-99",
        "x: !!python/object/apply:os.system [echo]",
        "[" * 5000,
        "seed: &a [*a]",
        "1: 2",
        "? [a, b]\n: 1",
        "seed: 1\0",
        "train:",
        "train: 3",
        "seed: !!binary AAAA",
        "<<: 3",
    ],
    ids=range(17),
)
def test_yaml_that_is_no_configuration(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, "utf-8")
    message = refused(lambda: parse_config(load_config(path), str(path)))
    assert message.startswith(f"{path}: ")


def test_yaml_errors_name_the_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\ntrain: ]\n")
    assert refused(load_config, path) == f"{path}: not valid YAML at line 2: correct it"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80abc", b"\x89HDF\r\n\x1a\n"])
def test_files_that_are_not_text(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert "found something that is not text" in refused(load_config, path)


def test_files_that_cannot_be_read(tmp_path):
    missing = tmp_path / "missing.yaml"
    for path, says in ((missing, "no such file"), (tmp_path, "not a plain file")):
        message = refused(load_config, path)
        assert message.startswith(f"{path}: ")
        assert says in message.lower()


def test_an_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# nothing\n")
    assert parse_config(load_config(path), "test") == Config()


counts = st.integers(1, 10**6)
switches = st.booleans()
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def maybe(strategy):
    return st.none() | strategy


def section(**keys):
    return st.fixed_dictionaries({}, optional=keys)


configurations = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "threads": maybe(st.integers(1, 64)),
        "device": st.sampled_from(["auto", "cpu", "cuda"]),
        "precision": st.sampled_from(["float32", "bfloat16"]),
        "data": maybe(texts),
        "method": st.sampled_from(
            ["hyper-representation", "approx", "classic-train", "multiclass"]
        ),
        "episode": section(way=counts, shot=counts, query=counts, rotations=maybe(switches)),
        "model": section(
            name=texts,
            norm=st.sampled_from(["episode", "batch", "ghost", "support"]),
            unit_length=switches,
            filters=maybe(counts),
            kernel_size=st.sampled_from([None, 1, 3]),
            outputs=maybe(counts),
        ),
        "inner": section(
            steps=st.integers(0, 10**6), lr=positive, learn_lr=switches, scale=positive
        ),
        "train": section(
            steps=counts,
            way=maybe(counts),
            lr=positive,
            weight_decay=positive | st.just(0.0),
            schedule=st.sampled_from(["constant", "paper", "cosine", "onecycle"]),
            optimizer=st.sampled_from(["adamw", "muon", "sgd"]),
            minutes=maybe(positive),
            patience=maybe(counts),
            accumulate=counts,
            clip=maybe(positive),
            average=maybe(st.floats(0, 1, exclude_min=True, exclude_max=True)),
            label_smoothing=st.floats(0, 1, exclude_max=True),
            augment=maybe(
                st.lists(st.sampled_from(["crop", "shift", "flip", "colour"]), max_size=4)
            ),
        ),
        "tracking": section(enabled=switches, uri=maybe(texts), experiment=maybe(texts)),
    },
)


@given(configurations)
def test_dump_and_load_are_inverse(tmp_path_factory, chosen):
    config = parse_config(chosen, "test")
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_config(config), "utf-8")
    again = parse_config(load_config(path), "test")
    assert again == config
    assert dump_config(again) == dump_config(config)
    assert again.flat().keys() == describe_keys().keys()


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text):
    try:
        config = assigned(f"train.lr={text}")
    except InputError:
        return
    assert config.train.lr > 0
    assert math.isfinite(config.train.lr)


def test_a_key_that_stands_there_twice(tmp_path):
    """One of the values would be lost without a word."""
    file = tmp_path / "config.yaml"
    file.write_text("seed: 1\ntrain:\n  steps: 3\n  lr: 0.1\n  steps: 4\n")
    message = refused(load_config, file)
    assert message == f"{file}: line 5: 'steps' stands there twice: remove one"


def test_a_number_of_more_digits_than_python_writes(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"seed: 0x{'f' * 20_000}\n")
    message = refused(parse_config, load_config(file), str(file))
    assert message.endswith("found a number of thousands of digits")
