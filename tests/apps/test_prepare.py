"""What `bilevel-data prepare` and `splits` say."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bilevel_data import PUBLISHED, SOURCES, open_store


@pytest.fixture
def drawings(tmp_path):
    rng = np.random.default_rng(0)
    for c in range(4):
        folder = tmp_path / "own" / f"c{c}"
        folder.mkdir(parents=True)
        for k in range(3):
            picture = Image.new("L", (30, 30), 255)
            draw = ImageDraw.Draw(picture)
            for _ in range(2):
                draw.line(rng.integers(5, 25, 4).tolist(), fill=0, width=3)
            picture.save(folder / f"{k}.png")
    return tmp_path / "own"


def prepare(command, tmp_path, *words):
    return command("data", "prepare", "folder", "--out", tmp_path / "own.h5", *words)


def test_every_option_of_a_source_is_in_the_help(command):
    shown = " ".join(command("data", "prepare", "--help").out.split())
    for name, source in SOURCES.items():
        assert name.partition(":")[0] in shown
        assert all(option in shown for option in source.options)


def test_the_ink_is_said_and_chosen(command, drawings, tmp_path):
    outcome = prepare(command, tmp_path, "--source", drawings)
    assert outcome.status == 0
    assert "own.h5: drawings in dark ink" in outcome.err
    assert "dark ink" in outcome.out
    words = ("--source", drawings, "--option", "ink=bright", "--overwrite")
    outcome = prepare(command, tmp_path, *words)
    assert outcome.status == 0
    found = open_store(tmp_path / "own.h5").manifest.preprocessing
    assert (found.ink, found.inverted, found.image_shape) == ("bright", True, (30, 30, 1))


def test_what_cannot_be_read_is_left_out_and_counted(command, drawings, tmp_path):
    (drawings / "c0" / "bad.png").write_bytes(b"no picture")
    (drawings / "c1" / "notes.txt").touch()
    outcome = prepare(command, tmp_path, "--source", drawings)
    assert "--skip-unreadable" in outcome.error
    outcome = prepare(command, tmp_path, "--source", drawings, "--skip-unreadable")
    assert outcome.status == 0
    assert "left out: 2 (unreadable)" in outcome.out


def test_strict_refuses_what_is_there_twice(command, drawings, tmp_path):
    (drawings / "c1" / "again.png").write_bytes((drawings / "c0" / "0.png").read_bytes())
    outcome = prepare(command, tmp_path, "--source", drawings, "--strict")
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert "1 pictures are in two classes" in outcome.err
    assert not (tmp_path / "own.h5").exists()
    outcome = prepare(command, tmp_path, "--source", drawings)
    assert outcome.status == 0
    assert "1 pictures are in two classes" in outcome.err


@pytest.mark.parametrize("name", PUBLISHED)
def test_where_classes_come_from(command, name):
    record = json.loads(command("data", "splits", name, "--json").out)
    assert record["source"] == PUBLISHED[name].source
    assert tuple(record["sizes"].values()) == PUBLISHED[name].sizes
    assert PUBLISHED[name].source in command("data", "splits", name).out


def test_splits_that_are_not_known(command):
    assert "expected one of cifar-fs" in command("data", "splits", "imagenet").error
