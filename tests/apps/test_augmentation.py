"""Changes of training images: what each does, and that it is a function of the episode's number."""

import dataclasses

import numpy as np
import pytest
import torch

from bilevel_apps.runs.build import episode_sampler
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.processes import ALONE, Processes
from bilevel_apps.training import loop as module
from bilevel_apps.training.data_parallel import Shard
from bilevel_apps.training.loop import train
from bilevel_apps.training.prepare import prepare
from bilevel_apps.training.state import Training
from bilevel_data import EpisodeSampler, open_store
from bilevel_data.episodes.augmentation import (
    LUMA,
    Augmented,
    affine_maps,
    coloured,
    flipped,
    moved,
    resampled,
)

FROZEN = [[1, 46, 144, 128, 75], [177, 79, 114, 156, 140], [100, 144, 79, 209, 188]]
ALL = frozenset({"affine", "crop", "shift", "flip", "colour"})


def pictures(n, size, channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def sampler(store):
    spec = {"way": 3, "shot": 2, "query": 4}
    return episode_sampler(open_store(store), "train", spec, keys="them", seed=0, rotations=False)


def equal(a, b):
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("edge", [False, True], ids=["black", "edge"])
def test_moved_by_hand(channels, edge):
    images, margin = pictures(40, 6, channels), 2
    draws = np.random.default_rng(1).random((40, 2))
    draws[:2] = [[0, 0], [1 - 2**-53, 1 - 2**-53]]  # the farthest corners
    found = moved(images, draws, margin, edge=edge)
    for image, draw, result in zip(images, draws, found, strict=True):
        top, left = (int(5 * u) - margin for u in draw)
        for row in range(6):
            for column in range(6):
                y, x = row + top, column + left
                inside = 0 <= y < 6 and 0 <= x < 6
                expected = image[np.clip(y, 0, 5), np.clip(x, 0, 5)]
                assert np.array_equal(result[row, column], expected * (inside or edge))


def test_not_moved_in_the_middle():
    images = pictures(2, 8, 3)
    assert np.array_equal(moved(images, np.full((2, 2), 0.5), 3, edge=False), images)


@pytest.mark.parametrize(("size", "channels"), [(6, 1), (7, 3)])
def test_resampled_by_hand(size, channels):
    """Bilinear in float64, pixel by pixel, with the pixels at the edge repeated outside."""
    images = pictures(12, size, channels)
    maps = affine_maps(np.random.default_rng(1).uniform(-1, 1, (12, 4)))
    found, middle = resampled(images, maps), (size - 1) / 2
    for image, map_, result in zip(images, maps, found, strict=True):
        for row in range(size):
            for column in range(size):
                place = map_ @ [row - middle, column - middle] + middle
                place = place.clip(0, size - 1)
                y, x = place.astype(int)
                down, right = place - (y, x)
                lower, beside = min(y + 1, size - 1), min(x + 1, size - 1)
                above = (1 - right) * image[y, x] + right * image[y, beside]
                below = (1 - right) * image[lower, x] + right * image[lower, beside]
                expected = (1 - down) * above + down * below
                # Weights of eight bits: a 256th of the difference of two pixels, and rounding.
                assert np.abs(result[row, column] - expected).max() <= 0.5 + 2 * 255 / 256


def test_maps_are_a_turn_a_shear_and_two_factors():
    unit, none = np.eye(4), np.zeros(4)
    assert np.array_equal(affine_maps(none[None])[0], np.eye(2))
    turn = affine_maps(unit[:1])[0]
    ten = np.deg2rad(10)
    assert turn == pytest.approx(
        np.array([[np.cos(ten), np.sin(ten)], [-np.sin(ten), np.cos(ten)]]), abs=1e-12
    )
    assert np.array_equal(affine_maps(unit[1:2])[0], [[1, 0], [0.3, 1]])
    assert affine_maps(unit[2:])[:, [0, 1], [0, 1]] == pytest.approx(
        np.array([[1 / 1.2, 1], [1, 1 / 1.2]])
    )
    each = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    parts = [affine_maps(each * np.isin(range(4), kept)) for kept in ([0], [1], [2, 3])]
    assert affine_maps(each) == pytest.approx(parts[0] @ parts[1] @ parts[2], abs=1e-12)


@pytest.mark.parametrize("size", [1, 8, 9])
def test_resampled_by_nothing_and_by_a_quarter_turn_is_exact(size):
    images = pictures(3, size, 3)
    assert np.array_equal(resampled(images, np.stack([np.eye(2)] * 3)), images)
    quarter = np.stack([np.array([[0.0, 1.0], [-1.0, 0.0]])] * 3)
    assert np.array_equal(resampled(images, quarter), np.rot90(images, axes=(1, 2)))


@pytest.mark.parametrize("channels", [1, 3])
def test_flipped_by_hand(channels):
    images, chosen = pictures(5, 7, channels), np.array([True, False, True, True, False])
    before = images.copy()
    found = flipped(images, chosen)
    for image, result, mirrored in zip(images, found, chosen, strict=True):
        assert np.array_equal(result, np.fliplr(image) if mirrored else image)
    assert np.array_equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_coloured_by_hand(channels):
    """One change after the other, in float64, each as its own blend."""
    images = pictures(30, 9, channels)
    factors = np.random.default_rng(1).uniform(0.6, 1.4, (30, 3))
    weights = np.array(LUMA) if channels == 3 else np.ones(1)
    x = images * factors[:, :1, None, None]
    mean = (x @ weights).mean(axis=(1, 2))[:, None, None, None]
    x = mean + factors[:, 1, None, None, None] * (x - mean)
    grey = (x @ weights)[..., None]
    x = grey + factors[:, 2, None, None, None] * (x - grey)
    expected = np.floor(np.clip(x, 0, 255) + 0.5).clip(0, 255)
    found = coloured(images, factors)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1  # float32 rounds a few ties the other way
    assert (found != expected).mean() < 1e-3
    assert (found == 0).any()
    assert (found == 255).any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_colours_times_one_are_the_image(channels):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=-1)
    images = np.concatenate([images, pictures(20, 16, channels)])
    assert np.array_equal(coloured(images, np.ones((21, 3))), images)


def test_no_saturation_is_grey_and_no_contrast_is_the_mean():
    images = pictures(3, 8, 3)
    grey = coloured(images, np.array([[1, 1, 0]] * 3))
    assert np.abs(grey - (images @ np.array(LUMA))[..., None]).max() <= 0.5 + 1e-3
    flat = coloured(images, np.array([[1, 0, 1]] * 3))
    assert all(len(np.unique(image)) == 1 for image in flat)
    mean = (images @ np.array(LUMA)).mean(axis=(1, 2))
    assert np.abs(flat[:, 0, 0, 0] - mean).max() <= 0.5 + 1e-3


def test_equal_however_episodes_are_drawn(sampler):
    whole = Augmented(whole=sampler, changes=ALL, seed=3)
    batch = whole.batch(5, 4)
    single = [whole.batch(5 + i, 1) for i in range(4)]
    shards = [
        Shard(whole=whole, processes=Processes(rank=rank, size=2)).batch(5, 4) for rank in (0, 1)
    ]
    for parts in (single, shards):
        for name in ("support", "query", "support_labels", "query_labels"):
            together = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(together, getattr(batch, name))
    assert not equal(batch, whole.batch(6, 4))
    assert not equal(batch, Augmented(whole=sampler, changes=ALL, seed=4).batch(5, 4))


def test_what_is_changed(sampler):
    plain = sampler.batch(0, 4)
    assert equal(Augmented(whole=sampler, changes=frozenset(), seed=0).batch(0, 4), plain)
    for change in ALL:
        found = Augmented(whole=sampler, changes=frozenset({change}), seed=0).batch(0, 4)
        for name in ("support", "query"):
            before, after = getattr(plain, name), getattr(found, name)
            assert after.shape == before.shape
            assert after.dtype == np.uint8
            assert not np.array_equal(after, before)
        assert np.array_equal(found.query_labels, plain.query_labels)
    assert equal(sampler.batch(0, 4), plain)  # the split itself is untouched


def test_affine_changes_are_frozen():
    """Whole numbers alone, so that every machine comes to these pixels."""
    strengths = np.linspace(-1, 1, 12).reshape(3, 4)
    images = (np.arange(3 * 25) ** 2 % 251).astype(np.uint8).reshape(3, 5, 5, 1)
    found = resampled(images, affine_maps(strengths)).reshape(3, 25)
    assert found[:, [1, 8, 12, 19, 24]].tolist() == FROZEN


def test_images_change_each_by_itself(sampler):
    found = Augmented(whole=sampler, changes=frozenset({"flip"}), seed=0).batch(0, 200)
    plain = sampler.batch(0, 200)
    same = (found.query == plain.query).all(axis=(2, 3, 4))
    mirrored = (found.query == plain.query[:, :, :, ::-1]).all(axis=(2, 3, 4))
    assert (same | mirrored).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.05)
    assert 0 < mirrored[0].sum() < len(mirrored[0])


def test_one_change_does_not_alter_another(sampler):
    both = Augmented(whole=sampler, changes=frozenset({"flip", "colour"}), seed=0).batch(0, 3)
    flip = Augmented(whole=sampler, changes=frozenset({"flip"}), seed=0)
    colour = Augmented(whole=flip, changes=frozenset({"colour"}), seed=0)
    assert equal(both, colour.batch(0, 3))


def test_training_alone_has_overlapping_episodes(tmp_path, config):
    opened = open_store(config().data)
    folder = RunFolder(tmp_path / "run")
    chosen = config(train__overlap=True)
    made = prepare(chosen, folder, opened, torch.device("cpu"), ALONE)
    assert made.train_episodes.overlap
    assert not made.val_episodes.overlap


def test_training_images_alone_are_changed(tmp_path, config, monkeypatch):
    used = []

    def watch(task, sampler, **options):
        used.append(sampler)
        return module.Score(accuracy=0.5, ci95=0.0, episodes=4)

    monkeypatch.setattr(module, "score_learner", watch)
    made = []
    whole = Training.batches
    monkeypatch.setattr(Training, "batches", lambda self: made.append(whole(self)) or made[-1])
    train(config(train__augment=["flip"], train__steps=2), tmp_path / "a", resume=False)
    train(config(train__steps=2), tmp_path / "b", resume=False)
    assert all(isinstance(sampler, EpisodeSampler) for sampler in used)
    with_, without = made
    assert isinstance(with_, Augmented)
    assert with_.changes == {"flip"}
    assert isinstance(without, EpisodeSampler)
