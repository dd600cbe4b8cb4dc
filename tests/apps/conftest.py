"""A tiny store that can be learned from, runs on it, and the commands in this process."""

import sys
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
import torch

from bilevel_apps.config import parse_config
from bilevel_apps.training import loop
from bilevel_apps.training.loop import train
from bilevel_data import SourceData, SourceSplit, write_store

CLASSES = {"train": 12, "val": 6, "test": 6}
IMAGES, SIZE = 20, 16


def source(seed=0, size=SIZE, classes=None):
    """Classes are coarse patterns under noise."""
    rng = np.random.default_rng(seed)

    def pictures():
        pattern = np.kron(rng.integers(0, 2, (4, 4)), np.ones((size // 4, size // 4)))
        noisy = 255 * pattern + rng.normal(0, 90, (IMAGES, size, size))
        return noisy.clip(0, 255).astype(np.uint8)[..., None]

    return SourceData(
        name="tiny",
        licence="CC0",
        source="made by a test",
        preprocessing="none",
        rotations_are_classes=False,
        splits=tuple(
            SourceSplit(
                name=name,
                class_names=tuple(f"{name}-{c}" for c in range(count)),
                class_sizes=(IMAGES,) * count,
                image_shape=(size, size, 1),
                images=[pictures() for _ in range(count)],
            )
            for name, count in (classes or CLASSES).items()
        ),
    )


@pytest.fixture(scope="session")
def make_source():
    """Make what a store is written from."""
    return source


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """Write a store and return its path."""

    def make(**options):
        path = tmp_path_factory.mktemp("store") / "tiny.h5"
        write_store(path, source(**options))
        return path

    return make


@pytest.fixture(scope="session")
def store(make_store):
    return make_store()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def merge(settings, changes):
    """Return settings with `section__key=value` changes."""
    merged = {k: dict(v) if isinstance(v, dict) else v for k, v in settings.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            merged.setdefault(section, {})[key] = value
        else:
            merged[section] = value
    return merged


@pytest.fixture(scope="session")
def settings(store):
    """Make the settings of a run of a second or less; `train__steps=3` changes `train.steps`."""
    base = {
        "threads": 1,
        "device": "cpu",
        "data": str(store),
        "episode": {"way": 5, "shot": 1, "query": 3},
        "model": {"filters": 4},
        "inner": {"steps": 5},
        "train": {
            "steps": 6,
            "meta_batch": 2,
            "schedule": "constant",
            "validate_every": 2,
            "validate_episodes": 4,
            "checkpoint_every": 2,
        },
        "tracking": {"enabled": False},
    }

    def make(**changes):
        return merge(base, changes)

    return make


@pytest.fixture(scope="session")
def config(settings):
    return lambda **changes: parse_config(settings(**changes), "test")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, config):
    """The folder of a short run; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    train(config(), folder, resume=False)
    return folder


class Killed(BaseException):
    """Nothing in the program catches this."""


@pytest.fixture
def train_killed(monkeypatch):
    """Train and end as a kill would: in the middle of hyper-iteration `step + 1`."""
    whole = loop._hyper_iteration

    def begin(chosen, folder, step, *, resume=False):
        def cut(training, batch):
            if training.step == step:
                raise Killed
            return whole(training, batch)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_hyper_iteration", cut)
            with pytest.raises(Killed):
                train(chosen, folder, resume=resume)

    return begin


MODULES = {"eval": "evaluate"}  # of the others by the command's name


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    @property
    def error(self):
        """The message, where the command ended as every refusal must: in one line."""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        assert self.out == ""
        return line


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process: `command("train", "--out", folder)`."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"bilevel-{name}", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            import_module(f"bilevel_apps.cli.{MODULES.get(name, name)}").main()
        return Outcome(ended.value.code, *capsys.readouterr())

    return run
