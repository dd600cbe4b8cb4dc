"""Episodes of any way and any number of pictures, and of several splits."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_data import DataError, EpisodeLoader, EpisodeSampler, EpisodeSpec
from bilevel_data.episodes.varied import MixedSampler, VariedSampler, VariedSpec

SPEC = VariedSpec(way=(3, 6), shot=(1, 4), query=2)


def numbers(images):
    """The number that `image_split` writes into each image."""
    return images[..., 0, 0, 0].astype(int) * 256 + images[..., 0, 1, 0]


def classes(images):
    return images[..., 1, 0, 0].astype(int)


@pytest.fixture
def sampler(image_split):
    def make(**changes):
        fields = {"seed": 0, "block": 4} | changes
        return VariedSampler(image_split(sizes=(8,) * 9), fields.pop("spec", SPEC), **fields)

    return make


@given(st.integers(0, 2**40), st.integers(0, 5))
def test_an_episode_is_what_its_counts_say(image_split, block, seed):
    sampler = VariedSampler(image_split(sizes=(8,) * 9), SPEC, seed=seed, block=3)
    first = 3 * block
    shots, batch = sampler.shots(first), sampler.batch(first, 3)
    way = len(shots)
    assert 3 <= way <= 6
    assert shots.min() >= 1
    assert shots.max() <= 4
    assert batch.classes.shape == (3, way)
    for episode in range(3):
        labels = batch.support_labels[episode]
        assert np.bincount(labels, minlength=way).tolist() == shots.tolist()
        assert (batch.classes[episode][labels] == classes(batch.support[episode])).all()
        query = batch.query_labels[episode]
        assert np.bincount(query).tolist() == [2] * way
        assert (batch.classes[episode][query] == classes(batch.query[episode])).all()
        seen = [*numbers(batch.support[episode]), *numbers(batch.query[episode])]
        assert len(set(seen)) == len(seen)


def test_an_episode_is_a_function_of_its_number(sampler):
    whole = sampler().batch(8, 4)
    for k in range(4):
        alone = sampler().batch(8 + k, 1)
        np.testing.assert_array_equal(alone.support[0], whole.support[k])
        np.testing.assert_array_equal(alone.query_labels[0], whole.query_labels[k])
    assert not np.array_equal(sampler(seed=1).shots(8), sampler().shots(8)) or not np.array_equal(
        sampler(seed=1).shots(12), sampler().shots(12)
    )


def test_all_sizes_come_equally_often(sampler):
    drawn = [sampler(block=1).shots(i) for i in range(2000)]
    ways = Counter(len(shots) for shots in drawn)
    assert sorted(ways) == [3, 4, 5, 6]
    assert max(abs(count - 500) for count in ways.values()) < 100
    counts = Counter(np.concatenate(drawn).tolist())
    assert sorted(counts) == [1, 2, 3, 4]
    assert max(counts.values()) / min(counts.values()) < 1.1


def test_even_shots(sampler):
    even = VariedSpec(way=(3, 6), shot=(1, 4), query=2, uneven=False)
    drawn = [set(sampler(spec=even, block=1).shots(i).tolist()) for i in range(100)]
    assert all(len(shots) == 1 for shots in drawn)
    assert len(set(map(min, drawn))) == 4


def test_fixed_sizes_are_those_of_the_ordinary_sampler(sampler, image_split):
    fixed = VariedSpec(way=(5, 5), shot=(2, 2), query=2)
    ordinary = EpisodeSampler(
        image_split(sizes=(8,) * 9), EpisodeSpec(way=5, shot=2, query=2), seed=0
    )
    found, expected = sampler(spec=fixed).batch(4, 4), ordinary.batch(4, 4)
    np.testing.assert_array_equal(found.support, expected.support)
    np.testing.assert_array_equal(found.support_labels, expected.support_labels)


def test_a_loader_makes_its_meta_batches_of_blocks(sampler):
    with EpisodeLoader(sampler(), meta_batch=4, steps=6, prefetch=2) as batches:
        ways = [batch.classes.shape for batch in batches]
    assert ways == [(4, len(sampler().shots(4 * k))) for k in range(6)]
    with pytest.raises(DataError, match="of one block of 4"):
        sampler().batch(2, 4)


def test_splits_are_drawn_by_weight(image_split):
    spec = EpisodeSpec(way=3, shot=1, query=1)
    parts = [EpisodeSampler(image_split(name=n), spec, seed=0) for n in ("train", "val")]
    mixed = MixedSampler(parts, (3, 1), seed=0, block=2)
    sources = [mixed.source(2 * k) for k in range(2000)]
    assert sources == [mixed.source(2 * k + 1) for k in range(2000)]
    assert abs(sources.count(0) - 1500) < 80
    for k in (0, 7, 40):
        found, expected = mixed.batch(2 * k, 2), parts[sources[k]].batch(2 * k, 2)
        np.testing.assert_array_equal(found.support, expected.support)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: VariedSpec(way=(4, 3), shot=(1, 2), query=1), "way: expected"),
        (lambda s: VariedSpec(way=(1, 3), shot=(1, 2), query=1), "way: expected"),
        (lambda s: VariedSpec(way=(2, 3), shot=(0, 2), query=1), "shot: expected"),
        (lambda s: s(spec=VariedSpec(way=(2, 10), shot=(1, 2), query=1)), "way=10"),
        (lambda s: s(spec=VariedSpec(way=(2, 3), shot=(1, 8), query=1)), "shot=8"),
        (lambda s: s(block=0), "block"),
        (lambda s: MixedSampler([], [], seed=0), "weights"),
        (lambda s: MixedSampler([s()], [1, 2], seed=0), "weights"),
        (lambda s: MixedSampler([s()], [0.0], seed=0), "weights"),
        (lambda s: MixedSampler([s()], [float("nan")], seed=0), "weights"),
    ],
)
def test_what_does_not_fit_is_refused(sampler, make, message):
    with pytest.raises(DataError, match=message):
        make(sampler)
