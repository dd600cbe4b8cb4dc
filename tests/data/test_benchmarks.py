"""Standard benchmarks: their published class splits, and a miniature of each layout."""

import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from bilevel_data import (
    PUBLISHED,
    SOURCES,
    DataError,
    EpisodeSampler,
    EpisodeSpec,
    load_source,
    open_store,
    verify_store,
    write_store,
)
from bilevel_data.sources.torchvision.library import import_datasets

SIZES = {
    "cifar-fs": (64, 16, 20),
    "fc100": (60, 20, 20),
    "cub": (100, 50, 50),
    "aircraft": (70, 15, 15),
    "flowers": (71, 15, 16),
    "textures": (33, 7, 7),
}
NAMES = {
    "cub": [f"{k:03}.Bird_{k}" for k in range(1, 201)],
    "flowers": [str(k) for k in range(1, 103)],
}


def names_of(benchmark):
    listed = [name for classes in PUBLISHED[benchmark].classes.values() for name in classes]
    return NAMES.get(benchmark) or listed


@pytest.mark.parametrize("benchmark", SIZES)
def test_the_splits_have_the_published_sizes(benchmark):
    splits = PUBLISHED[benchmark]
    dealt = splits.deal(names_of(benchmark))
    assert tuple(len(dealt[split]) for split in ("train", "val", "test")) == SIZES[benchmark]
    assert splits.sizes == SIZES[benchmark]
    every = [name for classes in dealt.values() for name in classes]
    assert len(set(every)) == len(every) == len(names_of(benchmark))


def test_classes_that_papers_name():
    cifar = PUBLISHED["cifar-fs"]
    assert {cifar.split_of_class(name) for name in ("apple", "Maple tree", "pickup-truck")} == {
        "train",
        "val",
        "test",
    }
    fc100 = PUBLISHED["fc100"]
    people = {fc100.split_of_class(name) for name in ("baby", "boy", "girl", "man", "woman")}
    assert people == {"test"}  # whole superclasses
    assert set(PUBLISHED["cifar-fs"].classes["test"]) != set(fc100.classes["test"])
    cub = PUBLISHED["cub"]
    found = [cub.split_of_class(f"images/{k:03}.x") for k in (1, 2, 3, 4, 200)]
    assert found == ["train", "val", "train", "test", "test"]
    assert PUBLISHED["aircraft"].split_of_class("F/A-18") == "train"
    assert PUBLISHED["flowers"].split_of_class("010") == "val"


def test_classes_of_other_data_are_refused():
    with pytest.raises(DataError, match="1 classes are not of CIFAR-100"):
        PUBLISHED["cifar-fs"].deal([*names_of("cifar-fs"), "unicorn"])
    with pytest.raises(DataError, match="no class is left for val, test"):
        PUBLISHED["cub"].deal(["001.a", "003.b"])


def put(folder, seed, count=3, size=20):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")


def some(benchmark, each=3):
    """A few classes of each split."""
    dealt = PUBLISHED[benchmark].deal(names_of(benchmark))
    return {split: classes[:each] for split, classes in dealt.items()}


def built(benchmark, path, **options):
    data = load_source(benchmark, path, **options)
    file = path.parent / f"{benchmark}.h5"
    write_store(file, data, overwrite=True)
    verify_store(file)
    store = open_store(file)
    for split in store.splits:
        sampler = EpisodeSampler(store.load(split), EpisodeSpec(way=3, shot=1, query=2), seed=0)
        assert sampler.batch(0, 2).support.shape[:2] == (2, 3)
    return store


@pytest.mark.parametrize("benchmark", SIZES)
@pytest.mark.parametrize("below", ["", "data/images"])
def test_a_folder_of_classes(tmp_path, benchmark, below):
    expected = some(benchmark)
    every = [name for classes in expected.values() for name in classes]
    for seed, name in enumerate(every):
        put(tmp_path / "top" / below / name.replace("/", "-"), seed)
    store = built(benchmark, tmp_path / "top", size=8)
    for split, classes in expected.items():
        found = store.manifest.splits[split]
        assert sorted(found.class_names) == sorted(name.replace("/", "-") for name in classes)
        assert found.image_shape == (8, 8, 3)
    assert store.manifest.name == benchmark
    assert PUBLISHED[benchmark].source in store.manifest.source


def test_tiered_imagenet(tmp_path):
    for s, split in enumerate(("train", "val", "test")):
        for c in range(3):
            put(tmp_path / "tiered_imagenet" / split / f"n0{s}{c}", 10 * s + c)
    store = built("tiered-imagenet", tmp_path / "tiered_imagenet")
    assert [len(info.class_names) for info in store.manifest.splits.values()] == [3, 3, 3]
    assert store.manifest.splits["val"].image_shape == (84, 84, 3)
    with pytest.raises(DataError, match="expected"):
        load_source("tiered-imagenet", tmp_path / "tiered_imagenet" / "train")


@pytest.mark.parametrize("benchmark", ["cifar-fs", "fc100"])
def test_cifar_100_as_torchvision_has_it(tmp_path, benchmark, monkeypatch):
    """The published archive's layout, four pictures of each class; its own reader unpacks it."""
    try:
        datasets = import_datasets()
    except DataError as err:
        pytest.skip(str(err))
    root = tmp_path / "root" / "cifar-100-python"
    root.mkdir(parents=True)
    names = sorted(names_of("cifar-fs"))
    rng = np.random.default_rng(0)
    for part, count in (("train", 300), ("test", 100)):
        labels = [k % 100 for k in range(count)]
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": data, "fine_labels": labels}
        (root / part).write_bytes(pickle.dumps(content))
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    monkeypatch.setattr(datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    store = built(benchmark, tmp_path / "root")
    found = {split: set(info.class_names) for split, info in store.manifest.splits.items()}
    assert found == {split: set(c) for split, c in PUBLISHED[benchmark].classes.items()}
    assert store.manifest.splits["train"].image_shape == (32, 32, 3)
    assert Counter(store.load("test").class_sizes.tolist()) == {4: 20}


def test_what_is_not_there(tmp_path):
    for name in (*PUBLISHED, "tiered-imagenet"):
        assert SOURCES[name].takes_path
        with pytest.raises(DataError, match="expected the folder or the archive"):
            load_source(name, tmp_path / "none")
        with pytest.raises(DataError, match="expected the folder or the archive"):
            load_source(name)
    with pytest.raises(DataError, match="expected CUB-200-2011"):
        load_source("cub", tmp_path)


def test_a_folder_of_ones_own_with_a_list(tmp_path):
    for seed in range(4):
        put(tmp_path / "p" / f"c{seed}", seed)
    (tmp_path / "s.json").write_text('{"train": ["c0", "c1"], "test": ["c3"]}')
    data = load_source("folder", tmp_path / "p", splits=str(tmp_path / "s.json"))
    assert {s.name: s.class_names for s in data.splits} == {"train": ("c0", "c1"), "test": ("c3",)}
