"""Smaller images in the first half of a training: by area, exact, and resumed to the bit."""

import numpy as np
import pytest
import torch

from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import check_size
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.processes import ALONE
from bilevel_apps.training.loop import train
from bilevel_apps.training.prepare import prepare
from bilevel_data import open_store
from bilevel_data.episodes.smaller import shrunk


def pictures(size, channels=1, n=4):
    rng = np.random.default_rng(size)
    return rng.integers(0, 256, (2, n, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize(("before", "after", "channels"), [(28, 20, 1), (7, 3, 3), (5, 5, 2)])
def test_a_pixel_is_the_mean_of_its_area(before, after, channels):
    """In float64, by the overlap of each old pixel with each new one."""
    images = pictures(before, channels)
    edges = np.linspace(0, before, after + 1)
    old = np.arange(before)
    low = np.maximum(edges[:-1, None], old)
    overlap = np.maximum(np.minimum(edges[1:, None], old + 1) - low, 0) * after / before
    expected = np.einsum("yh,xw,...hwc->...yxc", overlap, overlap, images.astype(float))
    found = shrunk(images, after)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    # Each of the two sums has weights that are half a 256th off, in up to four pixels.
    assert np.abs(found - expected).max() <= 0.5 + 2 * 255 * 4 / 512


def test_what_is_exact():
    assert np.array_equal(shrunk(pictures(9, 3), 9), pictures(9, 3))
    flat = np.full((1, 28, 28, 1), 255, dtype=np.uint8)
    assert (shrunk(flat, 20) == 255).all()
    halves = pictures(8)
    means = halves.reshape(2, 4, 4, 2, 4, 2, 1).sum(axis=(3, 5))
    assert np.array_equal(shrunk(halves, 4), (means + 2) // 4)


def test_the_first_half_of_a_training_has_smaller_images(tmp_path, config):
    chosen = config(train__small=12, train__augment=["shift"])
    made = prepare(chosen, RunFolder(tmp_path), open_store(chosen.data), torch.device("cpu"), ALONE)
    sampler, each = made.batches(), chosen.train.meta_batch
    sizes = [sampler.batch(step * each, each).query.shape[2:4] for step in range(6)]
    assert sizes == [(12, 12)] * 3 + [(16, 16)] * 3
    assert made.val_episodes.batch(0, 1).query.shape[2:4] == (16, 16)


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_in_either_half_to_the_bit(tmp_path, config, train_killed, step):
    chosen = config(train__small=12, train__checkpoint_every=1)
    train(chosen, tmp_path / "whole", resume=False)
    folder = tmp_path / "cut"
    train_killed(chosen, folder, step)
    train(RunFolder(folder).load_config(), folder, resume=True)
    last = "last.safetensors"
    assert (folder / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_sizes_that_do_not_fit(tmp_path, config):
    chosen = config(train__small=16)
    opened = open_store(chosen.data)
    with pytest.raises(InputError, match=r"train\.small=16: images have 16×16: give less"):
        prepare(chosen, RunFolder(tmp_path), opened, torch.device("cpu"), ALONE)
    check_size(chosen, (28, 28, 1), 20)
    with pytest.raises(InputError, match=r"makes 4 features of such images and 16 of 28×28"):
        check_size(chosen, (28, 28, 1), 16)
    with pytest.raises(InputError, match=r"train\.small=8: image_size=8 is too small"):
        check_size(config(model__name="c4l"), (84, 84, 3), 8)


def test_their_half_follows_the_length_which_a_resume_may_not_change(tmp_path, config):
    folder = tmp_path / "run"
    train(config(train__small=12, train__steps=2), folder, resume=False)
    longer = config(train__small=12, train__steps=4)
    with pytest.raises(InputError, match=r"train\.steps is 4, but the run began with 2"):
        train(longer, folder, resume=True)
