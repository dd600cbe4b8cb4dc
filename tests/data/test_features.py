"""Stores of features: vectors in the place of pictures."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from bilevel_data import (
    DataError,
    EpisodeSampler,
    EpisodeSpec,
    Features,
    SourceSplit,
    open_store,
    verify_store,
    write_store,
)
from bilevel_data.episodes.augmentation import Augmented
from bilevel_data.episodes.smaller import SmallerAtFirst
from bilevel_data.preprocessing import Preprocessing
from bilevel_data.stores.manifest import parse_manifest

ABOUT = Features(
    backbone="c4l", weights="pretrained:tag", weights_sha256="ab" * 32, images={"train": "cd" * 32}
)
SIZES = (5, 4, 6)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, 1, 1, 7)).astype(np.float32) for n in SIZES]


@pytest.fixture
def of_features(source, vectors):
    def make(arrays=vectors, shape=(1, 1, 7), **changes):
        split = SourceSplit(
            name="train",
            class_names=("a", "b", "c"),
            class_sizes=SIZES,
            image_shape=shape,
            images=arrays,
        )
        how = Preprocessing(size=(84, 84), channels=3)
        given = {"rotations_are_classes": False, "features": ABOUT, "preprocessing": how}
        return source(split, **given | changes)

    return make


def test_vectors_come_back_bit_for_bit(tmp_path, of_features, vectors):
    path = tmp_path / "f.h5"
    written = write_store(path, of_features())
    assert verify_store(path) == written
    store = open_store(path)
    assert store.manifest.features == ABOUT
    assert store.manifest.preprocessing.size == (84, 84)
    assert (store.image_shape, store.class_sizes("train")) == ((1, 1, 7), SIZES)
    found = store.load("train").images
    assert found.dtype == np.float32
    assert np.array_equal(found, np.concatenate(vectors))


def test_episodes_are_of_the_vectors(tmp_path, of_features, vectors):
    write_store(tmp_path / "f.h5", of_features())
    split = open_store(tmp_path / "f.h5").load("train")
    sampler = EpisodeSampler(split, EpisodeSpec(way=3, shot=2, query=2), seed=0)
    batch = sampler.batch(0, 4)
    assert batch.support.shape == (4, 6, 1, 1, 7)
    assert batch.support.dtype == np.float32
    members = np.concatenate(vectors)[split.offsets[batch.classes[1, 0]] :]
    assert any(np.array_equal(batch.support[1, 0], one) for one in members)
    with pytest.raises(DataError):
        replace(sampler, rotations=True)
    for changed in (
        Augmented(whole=sampler, changes=frozenset({"flip"}), seed=0),
        SmallerAtFirst(whole=sampler, size=1, episodes=4),
    ):
        with pytest.raises(DataError):
            changed.batch(0, 2)


def test_pictures_keep_the_schema_that_older_versions_read(tmp_path, source, of_features):
    pictures = write_store(tmp_path / "p.h5", source()).to_json()
    features = write_store(tmp_path / "f.h5", of_features()).to_json()
    assert json.loads(pictures)["schema"] == 2
    assert "features" not in json.loads(pictures)
    assert json.loads(features)["schema"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_sha256": "ab"},
        {"backbone": ""},
        {"weights": "\x1b[2J"},
        {"images": ["train"]},
        {"images": {"train": 1}},
        {"more": 1},
    ],
)
def test_another_record_is_refused(tmp_path, of_features, changes):
    record = json.loads(write_store(tmp_path / "f.h5", of_features()).to_json())
    record["features"] |= changes
    with pytest.raises(DataError):
        parse_manifest(json.dumps(record))


def test_what_is_not_finite_or_no_vector_is_refused(tmp_path, of_features, vectors):
    path = tmp_path / "f.h5"
    spoilt = [np.where(v > 1, np.inf, v).astype(np.float32) for v in vectors]
    with pytest.raises(DataError):
        write_store(path, of_features(spoilt))
    with pytest.raises(DataError):
        write_store(path, of_features([v.reshape(-1, 1, 7, 1) for v in vectors], shape=(1, 7, 1)))
    with pytest.raises(DataError):
        write_store(path, of_features([v.astype(np.float64) for v in vectors]))
    assert not path.exists()


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i4", "u1"])
def test_numbers_of_another_type_are_refused(tmp_path, of_features, dtype):
    path = tmp_path / "f.h5"
    write_store(path, of_features())
    with h5py.File(path, "r+", libver="latest") as file:
        old = file["train/images"][...]
        del file["train/images"]
        file["train"].create_dataset(
            "images", data=old.astype(dtype), chunks=old.shape, fletcher32=True
        )
    with pytest.raises(DataError):
        open_store(path)
