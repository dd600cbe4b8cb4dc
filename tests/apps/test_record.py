"""A checkpoint that is whole, but not what a training writes, is refused in one line."""

import importlib.util
import json
import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bilevel_apps.config import parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import make_learner
from bilevel_apps.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bilevel_apps.runs.record import read_record

GONE = object()


@pytest.fixture
def crafted(tmp_path, trained):
    """Copy a run, with its last checkpoint changed by `change(record, tensors)`."""

    def make(change):
        folder = tmp_path / "run"
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        found = load_checkpoint(folder / "last.safetensors")
        record, tensors = json.loads(json.dumps(found.record)), dict(found.tensors)
        changed = change(record, tensors)
        record = record if changed is None else changed
        save_checkpoint(folder / "last.safetensors", Checkpoint(tensors=tensors, record=record))
        return folder

    return make


def setting(path, value):
    def change(record, _tensors):
        *parents, key = path
        for parent in parents:
            record = record[parent]
        if value is GONE:
            del record[key]
        else:
            record[key] = value

    return change


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
def test_a_network_that_cannot_be_built_without_memory(crafted):
    """regnet_y_400mf looks at its weights while it is built, which the device `meta` refuses."""

    def change(record, tensors):
        record["config"]["model"] |= {"name": "torchvision:regnet_y_400mf", "filters": None}
        record["image_shape"] = [32, 32, 3]
        config = parse_config(record["config"], "record")
        weights = make_learner(config, (32, 32, 3), torch.device("cpu")).state_dict()
        tensors.clear()
        tensors |= {f"model.{name}": weight for name, weight in weights.items()}

    path = crafted(change) / "last.safetensors"
    checkpoint = load_checkpoint(path)
    assert read_record(checkpoint, path).config.model.name == "torchvision:regnet_y_400mf"
    del checkpoint.tensors["model.log_lr"]
    with pytest.raises(InputError, match="its tensors are not those"):
        read_record(checkpoint, path)


def refused(command, folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    found = command("train", "--out", folder, "--resume")
    assert found.status == 2, found.err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    return found.error


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["step"], GONE, "(step: field required"),
        (["step"], "six", "(step: "),
        (["step"], -1, "(step: "),
        (["step"], 1.5, "(step: "),
        (["best_accuracy"], None, "(best_accuracy: "),
        (["best_step"], [], "(best_step: "),
        (["ended"], "boredom", "(ended: "),
        (["seconds"], -3.0, "(seconds: "),
        (["sums"], {"train/loss": "x"}, "(sums.train/loss: "),
        (["config"], GONE, "(config: field required"),
        (["config"], 3, "(config: "),
        (["config", "train"], 3, "config: train: a section, with keys such as train.steps"),
        (["config", "train", "colour"], 3, "config: unknown key train.colour"),
        (["config", "train", "steps"], "x" * 9999, "config: train.steps: "),
        (["config", "model", "outputs"], 10**18, "its tensors are not those of its configuration"),
        (["config", "model", "name"], "omniglot-nets", "omniglot-nets"),
        (["image_shape"], [16, 16], "(image_shape"),
        (["validated"], "no", "(validated: "),
        (["environment"], GONE, "(environment: field required"),
        (["environment"], "here", "(environment: "),
        (["environment", "data"], GONE, "(environment.data: field required"),
        (["environment", "data"], {"train": 3}, "(environment.data.train: "),
        (["environment", "threads"], "two", "(environment.threads: "),
    ],
)
def test_an_odd_record(command, crafted, path, value, says):
    folder = crafted(setting(path, value))
    line = refused(command, folder)
    assert line.startswith(f"error: {folder / 'last.safetensors'}: ")
    assert says in line
    assert len(line) < 600


@pytest.mark.parametrize("record", [[], [None], "text", 3, {}])
def test_a_record_that_is_no_table(command, crafted, record):
    folder = crafted(lambda *_: record)
    assert "its record is not that of a training" in refused(command, folder)


def drop(name):
    def change(_record, tensors):
        del tensors[name]

    return change


def put(name, tensor):
    return lambda _record, tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    "change",
    [
        drop("model.log_lr"),
        put("model.log_lr", torch.zeros(2)),
        put("model.log_lr", torch.zeros((), dtype=torch.float8_e4m3fn)),
        put("model.log_lr", torch.zeros((), dtype=torch.complex64)),
        put("model.log_lr", torch.zeros((), dtype=torch.int64)),
        put("model.more", torch.zeros(2)),
        put("optimizer.0", torch.zeros(2)),
        put("optimizer.99.exp_avg", torch.zeros(2)),
        put("optimizer.x.exp_avg", torch.zeros(2)),
        put("optimizer.0.exp_avg.more", torch.zeros(2)),
        put("optimizer.0.exp_avg", torch.zeros(2)),
        put("optimizer.0.whatever", torch.zeros(())),
        drop("optimizer.0.exp_avg"),
        lambda _record, tensors: tensors.clear(),
    ],
)
def test_tensors_that_do_not_fit(command, crafted, change):
    line = refused(command, crafted(change))
    assert "its tensors are not those of its configuration" in line
    assert len(line) < 600


def test_weights_that_are_no_numbers(command, crafted):
    folder = crafted(put("model.log_lr", torch.tensor(math.nan)))
    assert "its weights are not all finite numbers: restore a copy" in refused(command, folder)


def test_a_run_without_its_average(command, config, tmp_path):
    from bilevel_apps.training.loop import train

    folder = tmp_path / "run"
    train(config(train__average=0.5, train__steps=2), folder, resume=False)
    found = load_checkpoint(folder / "last.safetensors")
    kept = {k: v for k, v in found.tensors.items() if not k.startswith("average.")}
    save_checkpoint(folder / "last.safetensors", Checkpoint(tensors=kept, record=found.record))
    assert "its tensors are not those of its configuration" in refused(command, folder)


def test_what_newer_versions_add_is_not_in_the_way(command, crafted):
    folder = crafted(setting(["later"], {"any": [1]}))
    assert command("train", "--out", folder, "--resume").status == 0


def test_a_record_is_read_back(trained):
    found = load_checkpoint(trained / "last.safetensors")
    record = read_record(found, trained / "last.safetensors")
    assert record.as_json() == found.record
    assert record.step == 6


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_record_is_read_or_refused(trained, data):
    record = dict(load_checkpoint(trained / "last.safetensors").record)
    record[data.draw(st.sampled_from(sorted(record)))] = data.draw(values)
    try:
        found = read_record(Checkpoint(tensors={}, record=record), trained)
    except InputError:
        return
    assert found.step >= 0
    assert math.isfinite(found.best_accuracy)
