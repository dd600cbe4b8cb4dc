"""A miniature of each standard benchmark: built of an archive, verified, trained and scored."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from bilevel_data import PUBLISHED, open_store

SPLITS = ("train", "val", "test")
CLASSES, PICTURES, SIZE = 3, 4, 16


def members(benchmark):
    """Names of pictures as the benchmark has them, a few classes of each split."""
    if benchmark == "tiered-imagenet":
        classes = [f"tiered/{split}/n0{s}{c}" for s, split in enumerate(SPLITS) for c in range(3)]
    else:
        published = PUBLISHED[benchmark]
        every = [name for names in published.classes.values() for name in names]
        every = every or [f"{k:03}.Bird" if benchmark == "cub" else f"{k}" for k in range(1, 103)]
        found = {split: [] for split in SPLITS}
        for name in every:
            found[published.split_of_class(name)].append(name.replace("/", "-"))
        classes = [f"images/{name}" for split in SPLITS for name in found[split][:CLASSES]]
    return [f"{name}/{k}.png" for name in classes for k in range(PICTURES)]


@pytest.fixture
def archive(tmp_path):
    def make(benchmark):
        rng = np.random.default_rng(0)
        path = tmp_path / f"{benchmark}.zip"
        with zipfile.ZipFile(path, "w") as file:
            for name in members(benchmark):
                content = io.BytesIO()
                pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(content, "PNG")
                file.writestr(name, content.getvalue())
        return path

    return make


@pytest.mark.parametrize("benchmark", [*PUBLISHED, "tiered-imagenet"])
def test_from_an_archive_to_a_score(benchmark, archive, tmp_path, command):
    store, run = tmp_path / "data.h5", tmp_path / "run"
    source = ("--source", archive(benchmark), "--option", f"size={SIZE}")
    made = command("data", "prepare", benchmark, "--out", store, *source)
    assert made.status == 0, made.err
    assert command("data", "verify", store).status == 0
    manifest = open_store(store).manifest
    assert manifest.name == benchmark
    assert {name: len(info.class_names) for name, info in manifest.splits.items()} == dict.fromkeys(
        SPLITS, CLASSES
    )
    changes = ["episode.way=3", "episode.query=2", "model.filters=4", "train.steps=2"]
    changes += ["train.meta_batch=2", "train.validate_episodes=2", "tracking.enabled=false"]
    given = [part for change in changes for part in ("--set", change)]
    trained = command(*("train", "--preset", "folder-quick", "--data", store, "--out", run), *given)
    assert trained.status == 0, trained.err
    report = json.loads(command("eval", run, "--episodes", "3", "--json").out)
    assert report["checkpoint_step"] == 2
    assert report["way"] == 3
