"""The options of training are the same ones when several processes divide the episodes."""

import pytest
import torch
import yaml

from bilevel_apps.runs.build import part_of
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.training.loop import train
from forked import run_together

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]

OPTIONS = {
    "model__filters": 16,
    "train__steps": 3,
    "train__meta_batch": 4,
    "train__accumulate": 2,
    "train__average": 0.7,
    "train__clip": 0.05,
    "train__label_smoothing": 0.1,
    "train__augment": ["shift", "flip", "colour"],
    "train__schedule": "cosine",
}


def vector(folder, part):
    tensors = part_of(load_checkpoint(folder / "last.safetensors").tensors, part)
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def test_two_processes_come_to_what_one_comes_to(tmp_path, config, settings):
    file, folder, whole = tmp_path / "config.yaml", tmp_path / "two", tmp_path / "one"
    file.write_text(yaml.safe_dump(settings(**OPTIONS)))
    train(config(**OPTIONS), whole, resume=False)
    done = run_together(tmp_path / "log", file, "--out", folder)
    assert done.statuses == [0, 0], done.said
    for part in ("model", "average"):
        found, expected = vector(folder, part), vector(whole, part)
        assert (found - expected).norm() <= 1e-6 * expected.norm(), part


def test_they_end_together_when_the_time_is_up(tmp_path, settings):
    file, folder = tmp_path / "config.yaml", tmp_path / "run"
    limited = OPTIONS | {"train__steps": 10**6, "train__minutes": 0.01}
    file.write_text(yaml.safe_dump(settings(**limited)))
    done = run_together(tmp_path / "log", file, "--out", folder)
    assert done.statuses == [0, 0], done.said
    assert done.said.count("train.minutes=0.01 are over") == 1
    record = load_checkpoint(folder / "last.safetensors").record
    assert record["ended"] == "minutes"
    assert record["seconds"] >= 0.6
    assert (folder / "best.safetensors").exists()


def test_parts_that_two_processes_cannot_divide_are_refused(tmp_path, settings):
    file, folder = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(settings(**OPTIONS | {"train__accumulate": 4})))
    done = run_together(tmp_path / "log", file, "--out", folder)
    assert done.statuses == [2, 2]
    (line,) = done.errors
    assert line.startswith("error: train.accumulate=4: 2 episodes in each of 2 processes")
    assert not folder.exists()
