"""Images that were prepared otherwise than those a run learned from: said, and scored upright."""

from dataclasses import replace

import numpy as np
import pytest

from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.runs.load import differently_prepared, load_run
from bilevel_data import Preprocessing, SourceData, SourceSplit, open_store, write_store

BRIGHT = Preprocessing(size=(16, 16), channels=1, inverted=True, ink="bright")


def strokes(rng, count, ink):
    images = np.full((count, 16, 16, 1), 255, dtype=np.uint8)
    for image in images:
        row, column = rng.integers(3, 12, 2)
        image[row : row + 2, 3:13] = image[3:13, column : column + 2] = 0
    return images if ink == "dark" else 255 - images


@pytest.fixture
def drawn(tmp_path):
    """Write a store of drawings; returns its path."""

    def make(ink, preprocessing, rotations=False):
        rng = np.random.default_rng(0)
        split = SourceSplit(
            name="test",
            class_names=tuple(f"c{c}" for c in range(6)),
            class_sizes=(20,) * 6,
            image_shape=(16, 16, 1),
            images=[strokes(rng, 20, ink) for _ in range(6)],
        )
        source = SourceData(
            name="drawn",
            licence="CC0",
            source="made by a test",
            preprocessing=preprocessing,
            rotations_are_classes=rotations,
            splits=(split,),
        )
        path = tmp_path / f"{ink}-{rotations}.h5"
        write_store(path, source, overwrite=True)
        return path

    return make


def said(run, path):
    store = open_store(path)
    return differently_prepared(run, store, store.load("test"))


def test_the_ink_is_compared(trained, drawn):
    run = replace(load_run(trained, "cpu"), preprocessing=BRIGHT)
    line = said(run, drawn("dark", replace(BRIGHT, ink="dark", inverted=False)))
    assert "dark ink and not bright" in line
    assert "\n" not in line
    assert said(run, drawn("bright", BRIGHT)) is None
    # A store of schema 1 does not know, and its images do.
    assert "dark ink and not bright" in said(run, drawn("dark", "16×16"))
    assert said(run, drawn("bright", "16×16")) is None
    whole = replace(BRIGHT, crop=False)
    assert "resized whole and not cut to a square" in said(run, drawn("bright", whole))


def test_nothing_is_said_where_nothing_is_known(trained, store, drawn):
    run = load_run(trained, "cpu")
    assert said(replace(run, preprocessing=None), drawn("dark", "16×16")) is None
    assert said(run, drawn("dark", "16×16")) is None
    assert said(replace(run, preprocessing=replace(BRIGHT, crop=False)), store) is None  # its own


def warnings(capsys):
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning: ")]


def test_evaluation_says_it(trained, drawn, monkeypatch, capsys):
    from bilevel_apps.evaluate import evaluate

    load = evaluate.load_run
    monkeypatch.setattr(
        evaluate, "load_run", lambda *words: replace(load(*words), preprocessing=BRIGHT)
    )
    dark = replace(BRIGHT, ink="dark", inverted=False)
    evaluate_run(trained, EvaluationRequest(data=drawn("dark", dark), episodes=2))
    (line,) = warnings(capsys)
    assert "dark ink" in line
    evaluate_run(trained, EvaluationRequest(data=drawn("bright", BRIGHT), episodes=2))
    assert warnings(capsys) == []


def test_rotated_copies_count_only_where_the_images_say_so(trained, store, drawn):
    run = load_run(trained, "cpu")
    turned = replace(
        run,
        config=run.config.model_copy(
            update={"episode": run.config.episode.model_copy(update={"rotations": True})}
        ),
    )
    assert turned.counts_rotations(open_store(store), "test")  # its own, as it was trained
    assert not turned.counts_rotations(open_store(drawn("bright", BRIGHT)), "test")
    assert turned.counts_rotations(open_store(drawn("bright", BRIGHT, rotations=True)), "test")
    assert not run.counts_rotations(open_store(drawn("bright", BRIGHT, rotations=True)), "test")
