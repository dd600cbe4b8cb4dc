"""A flipped bit is refused or changes nothing: no other data, no hang, no death by a signal."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel_apps.runs.checkpoint import Checkpoint, save_checkpoint
from bilevel_data import SourceData, SourceSplit, write_store

WORKER = Path(__file__).with_name("hostile_flips.py")
SMALL, LARGE = 64_000, 1_000_000
BATCH = 5_000


def write_small_store(path, side=4, images=4):
    rng = np.random.default_rng(0)
    splits = tuple(
        SourceSplit(
            name=name,
            class_names=tuple(f"{name}-{c}" for c in range(classes)),
            class_sizes=(images,) * classes,
            image_shape=(side, side, 1),
            images=[
                rng.integers(0, 256, (images, side, side, 1), dtype=np.uint8)
                for _ in range(classes)
            ],
        )
        for name, classes in {"train": 3, "test": 2}.items()
    )
    source = SourceData(
        name="tiny",
        licence="CC0",
        source="made by a test",
        preprocessing="none",
        rotations_are_classes=False,
        splits=splits,
    )
    write_store(path, source)


def write_small_checkpoint(path, width=4):
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.backbone.{k}.weight": torch.randn(width, width, 3, 3, generator=generator)
        for k in range(3)
    }
    moments = {f"optimizer.{k}.exp_avg": torch.zeros(width) for k in range(3)}
    record = {"step": 7, "best_accuracy": 0.5, "config": {"seed": 0, "train": {"lr": 1e-3}}}
    save_checkpoint(path, Checkpoint(tensors={**weights, **moments}, record=record))


MAKE = {
    ("store", "small"): write_small_store,
    ("store", "large"): lambda path: write_small_store(path, side=84, images=40),
    ("checkpoint", "small"): write_small_checkpoint,
    ("checkpoint", "large"): lambda path: write_small_checkpoint(path, width=100),
}


def outcomes(kind, path, flips):
    """Load the file with each flip, in processes of some thousand flips, and count what came."""
    total = {"refused": 0, "same": 0, "different": 0}
    for start in range(0, len(flips), BATCH):
        batch = flips[start : start + BATCH]
        done = subprocess.run(
            [sys.executable, WORKER, kind, path],
            input=json.dumps(batch),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        assert done.returncode == 0, (
            f"status {done.returncode} at flip {batch[int(lines[-1])]}: {done.stderr[-500:]}"
        )
        for outcome, count in json.loads(lines[-1]).items():
            total[outcome] += count
    return total


def every_byte(path, masks):
    return [(place, mask) for mask in masks for place in range(path.stat().st_size)]


def random_bits(path, count):
    rng, size = random.Random(0), path.stat().st_size
    return [(rng.randrange(size), 1 << rng.randrange(8)) for _ in range(count)]


def checked(kind, path, flips):
    found = outcomes(kind, path, flips)
    assert found["different"] == 0
    assert found["refused"] + found["same"] == len(flips)
    assert found["refused"] > 0.5 * len(flips)  # what means nothing may stay unnoticed
    print(f"\n{kind} of {path.stat().st_size} bytes: {len(flips)} flips: {found}")


@pytest.mark.process
@pytest.mark.parametrize("kind", ["store", "checkpoint"])
def test_every_byte_of_a_small_file(tmp_path, kind):
    path = tmp_path / "small"
    MAKE[kind, "small"](path)
    assert path.stat().st_size <= SMALL
    checked(kind, path, every_byte(path, [0xFF]))


@pytest.mark.process
@pytest.mark.parametrize("kind", ["store", "checkpoint"])
def test_some_bits_of_a_large_file(tmp_path, kind):
    path = tmp_path / "large"
    MAKE[kind, "large"](path)
    assert path.stat().st_size >= LARGE
    checked(kind, path, random_bits(path, 200))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["store", "checkpoint"])
def test_every_byte_of_a_small_file_in_more_ways(tmp_path, kind):
    path = tmp_path / "small"
    MAKE[kind, "small"](path)
    checked(kind, path, every_byte(path, [0x01, 0x10, 0x80, 0xFF]))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["store", "checkpoint"])
def test_ten_thousand_bits_of_a_large_file(tmp_path, kind):
    path = tmp_path / "large"
    MAKE[kind, "large"](path)
    checked(kind, path, random_bits(path, 10_000))
