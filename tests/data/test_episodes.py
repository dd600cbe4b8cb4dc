"""Episodes: pure functions of their number, disjoint, uniform."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_data import DataError, EpisodeSampler, EpisodeSpec

FROZEN = [[4, 5, 2], [3, 3, 0], [[24], [25], [11]]]


def numbers(images):
    """The image numbers that the `image_split` fixture hides in the pixels."""
    return images[..., 0, 0, 0].astype(int) * 256 + images[..., 0, 1, 0]


@given(data=st.data(), rotations=st.booleans(), seed=st.integers(-(2**70), 2**70))
def test_episode_is_what_it_should_be(image_split, data, rotations, seed):
    sizes = data.draw(st.lists(st.integers(2, 9), min_size=2, max_size=12))
    shot = data.draw(st.integers(1, min(sizes) - 1))
    query = data.draw(st.integers(1, min(sizes) - shot))
    way = data.draw(st.integers(2, len(sizes) * (4 if rotations else 1)))
    split = image_split(sizes)
    spec = EpisodeSpec(way=way, shot=shot, query=query)
    sampler = EpisodeSampler(split, spec, seed=seed, rotations=rotations)
    i = data.draw(st.integers(0, 2**64 - 1))
    drawn = sampler.indices(i)

    assert drawn.support.shape == (way, shot)
    assert drawn.query.shape == (way, query)
    pairs = set(zip(drawn.classes.tolist(), drawn.rotations.tolist(), strict=True))
    assert len(pairs) == way
    assert set(drawn.rotations.tolist()) <= ({0, 1, 2, 3} if rotations else {0})
    images = np.concatenate([drawn.support, drawn.query], axis=1)
    assert all(len(set(row)) == shot + query for row in images.tolist())
    assert (images >= split.offsets[drawn.classes][:, None]).all()
    assert (images < split.offsets[drawn.classes + 1][:, None]).all()

    batch = sampler.batch(i, 1)
    turned = [
        np.rot90(split.images[image], k, axes=(0, 1))
        for row, k in zip(drawn.query, drawn.rotations, strict=True)
        for image in row
    ]
    np.testing.assert_array_equal(batch.query[0], turned)
    np.testing.assert_array_equal(batch.support_labels[0], np.repeat(np.arange(way), shot))
    np.testing.assert_array_equal(batch.query_labels[0], np.repeat(np.arange(way), query))


@given(first=st.integers(0, 50), count=st.integers(1, 8), rotations=st.booleans())
def test_batches_do_not_matter(image_split, first, count, rotations):
    spec = EpisodeSpec(way=3, shot=1, query=2)
    sampler = EpisodeSampler(image_split(), spec, seed=7, rotations=rotations)
    whole = sampler.batch(first, count)
    for i in range(count):
        one = sampler.batch(first + i, 1)
        for key in ("support", "query", "support_labels", "query_labels"):
            np.testing.assert_array_equal(getattr(whole, key)[i], getattr(one, key)[0])


def test_shapes_and_types(image_split):
    sampler = EpisodeSampler(
        image_split(shape=(4, 4, 3)), EpisodeSpec(way=5, shot=2, query=3), seed=0
    )
    batch = sampler.batch(0, 6)
    assert batch.support.shape == (6, 10, 4, 4, 3)
    assert batch.query.shape == (6, 15, 4, 4, 3)
    assert batch.support.dtype == batch.query.dtype == np.uint8
    assert batch.support_labels.shape == (6, 10)
    assert batch.query_labels.shape == (6, 15)
    assert batch.support_labels.dtype == batch.query_labels.dtype == np.int64
    assert batch.support.flags.writeable
    assert batch.support.flags.c_contiguous


def test_episodes_are_frozen(image_split):
    """Changing them would change every result ever reported."""
    sampler = EpisodeSampler(
        image_split(), EpisodeSpec(way=3, shot=1, query=1), seed=0, rotations=True
    )
    drawn = sampler.indices(5)
    found = [drawn.classes.tolist(), drawn.rotations.tolist(), drawn.support.tolist()]
    assert found == FROZEN


def test_every_part_of_the_description_matters(image_split):
    split, spec = image_split((6,) * 30), EpisodeSpec(way=5, shot=1, query=2)
    variants = [
        EpisodeSampler(split, spec, seed=0),
        EpisodeSampler(split, spec, seed=1),
        EpisodeSampler(split, spec, seed=0, rotations=True),
        EpisodeSampler(split, EpisodeSpec(way=5, shot=2, query=1), seed=0),
        EpisodeSampler(split, EpisodeSpec(way=5, shot=1, query=3), seed=0),
        EpisodeSampler(image_split((6,) * 30, name="val"), spec, seed=0),
    ]
    drawn = {tuple(v.indices(i).classes.tolist()) for v in variants for i in range(4)}
    assert len(drawn) == 4 * len(variants)


def test_classes_and_images_are_drawn_uniformly(image_split):
    split = image_split((4,) * 10)
    sampler = EpisodeSampler(split, EpisodeSpec(way=3, shot=1, query=1), seed=3)
    episodes = 4000
    drawn = [sampler.indices(i) for i in range(episodes)]
    for place in range(3):
        seen = np.bincount([d.classes[place] for d in drawn], minlength=10)
        assert ((seen - episodes / 10) ** 2 / (episodes / 10)).sum() < 33  # p = 1e-4
    for part in ("support", "query"):
        images = np.concatenate([getattr(d, part).ravel() for d in drawn])
        expected = 3 * episodes / 40
        seen = np.bincount(images, minlength=40)
        assert ((seen - expected) ** 2 / expected).sum() < 85  # p = 2e-5


def test_rotated_copies_meet_in_an_episode(image_split):
    sampler = EpisodeSampler(
        image_split((2, 2)), EpisodeSpec(way=8, shot=1, query=1), seed=0, rotations=True
    )
    drawn = sampler.indices(0)
    pairs = sorted(zip(drawn.classes.tolist(), drawn.rotations.tolist(), strict=True))
    assert pairs == [(c, k) for c in (0, 1) for k in range(4)]
    assert sampler.num_classes == 8


def test_rotation_is_counter_clockwise(image_split):
    split = image_split((2, 2))
    sampler = EpisodeSampler(split, EpisodeSpec(way=8, shot=1, query=1), seed=0, rotations=True)
    drawn, batch = sampler.indices(0), sampler.batch(0, 1)
    label = int(np.flatnonzero(drawn.rotations == 1)[0])
    image = split.images[drawn.support[label, 0]]
    # The upper right corner goes to the upper left one.
    np.testing.assert_array_equal(batch.support[0, label][0, 0], image[0, -1])
    np.testing.assert_array_equal(batch.support[0, label][-1, 0], image[0, 0])


@pytest.mark.parametrize("key", ["way", "shot", "query"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, None])
def test_wrong_specs(key, value):
    with pytest.raises(DataError, match=f"{key}: expected a whole number"):
        EpisodeSpec(**{"way": 2, "shot": 1, "query": 1, key: value})


def test_one_way_is_no_task():
    with pytest.raises(DataError, match=r"way: expected a whole number ≥ 2, found 1"):
        EpisodeSpec(way=1, shot=1, query=1)


def test_too_many_classes(image_split):
    spec = EpisodeSpec(way=20, shot=1, query=1)
    split = image_split((5,) * 16, name="val")
    message = "way=20 but split 'val' has 16 classes: lower way or"
    with pytest.raises(DataError, match=message):
        EpisodeSampler(split, spec, seed=0)
    assert EpisodeSampler(split, spec, seed=0, rotations=True).num_classes == 64


def test_too_few_images(image_split):
    spec = EpisodeSpec(way=2, shot=2, query=2)
    with pytest.raises(DataError, match="class 'c0001' of split 'train' has 3 images"):
        EpisodeSampler(image_split((5, 3, 4)), spec, seed=0)


def test_rotations_need_squares(image_split):
    spec = EpisodeSpec(way=2, shot=1, query=1)
    with pytest.raises(DataError, match="has 4×5: turn rotations off"):
        EpisodeSampler(image_split(shape=(4, 5, 1)), spec, seed=0, rotations=True)


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0), (2**64, 1), (2**64 - 1, 2)])
def test_wrong_numbers(image_split, first, count):
    sampler = EpisodeSampler(image_split(), EpisodeSpec(way=2, shot=1, query=1), seed=0)
    with pytest.raises(DataError, match="expected first ≥ 0 and count ≥ 1"):
        sampler.batch(first, count)


def test_support_and_query_never_meet_in_pixels(image_split):
    sampler = EpisodeSampler(image_split(), EpisodeSpec(way=5, shot=2, query=3), seed=0)
    batch = sampler.batch(0, 100)
    for support, query in zip(numbers(batch.support), numbers(batch.query), strict=True):
        assert not set(support.tolist()) & set(query.tolist())


def test_queries_overlap_with_the_support_as_often_as_chance_has_it(image_split):
    split, shot, query = image_split((20,) * 12), 5, 15
    spec = EpisodeSpec(way=5, shot=shot, query=query)
    sampler = EpisodeSampler(split, spec, seed=0, overlap=True)
    shared = 0
    for i in range(400):
        drawn = sampler.indices(i)
        for support, queries in zip(drawn.support.tolist(), drawn.query.tolist(), strict=True):
            assert len(set(support)) == shot
            assert len(set(queries)) == query
            assert {n // 20 for n in (*support, *queries)} == {support[0] // 20}
            shared += len(set(support) & set(queries))
    draws = 400 * 5 * query
    assert shared / draws == pytest.approx(shot / 20, abs=0.01)  # the 25 % of the released loader


def test_overlap_needs_fewer_images_and_leaves_other_episodes_alone(image_split):
    split = image_split((5, 5, 5))
    spec = EpisodeSpec(way=2, shot=5, query=4)
    with pytest.raises(DataError, match="shot=5 plus query=4"):
        EpisodeSampler(split, spec, seed=0)
    sampler = EpisodeSampler(split, spec, seed=0, overlap=True)
    assert set(sampler.indices(3).query.ravel()) <= set(sampler.indices(3).support.ravel())
    with pytest.raises(DataError, match="shot=1 and query=6"):
        EpisodeSampler(split, EpisodeSpec(way=2, shot=1, query=6), seed=0, overlap=True)
    whole = sampler.batch(0, 4)
    for i in range(4):
        np.testing.assert_array_equal(whole.query[i], sampler.batch(i, 1).query[0])


def test_a_batch_is_fast(image_split):
    """About 3 ms on the machine this was written on; the bound leaves room for slow ones."""
    split = image_split((20,) * 1000, (28, 28, 1))
    spec = EpisodeSpec(way=20, shot=1, query=15)
    sampler = EpisodeSampler(split, spec, seed=0, rotations=True)

    def seconds(first):
        start = time.perf_counter()
        sampler.batch(first, 8)
        return time.perf_counter() - start

    assert min(seconds(8 * k) for k in range(10)) < 0.05
