"""The loader gives the sampler's batches in order, and leaves no thread behind."""

import gc
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from bilevel_data import DataError, EpisodeLoader, EpisodeSampler, EpisodeSpec


@dataclass
class Recorder:
    """Gives its arguments back, and fails at one episode."""

    fails_at: int = -1
    calls: list = field(default_factory=list)

    def batch(self, first, count):
        self.calls.append(first)
        if first == self.fails_at:
            raise OSError("no more")
        return (first, count)


def threads():
    return [t for t in threading.enumerate() if t.name == "episode-loader"]


def wait_for_no_thread():
    end = time.monotonic() + 5
    while threads() and time.monotonic() < end:
        time.sleep(0.005)
    assert threads() == []


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    wait_for_no_thread()


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_same_batches_whatever_the_prefetch(image_split, prefetch):
    sampler = EpisodeSampler(image_split(), EpisodeSpec(way=3, shot=1, query=2), seed=1)
    with EpisodeLoader(sampler, meta_batch=3, first_step=2, steps=5, prefetch=prefetch) as loader:
        batches = list(loader)
    assert len(batches) == 5
    for k, batch in enumerate(batches):
        expected = sampler.batch(3 * (2 + k), 3)
        np.testing.assert_array_equal(batch.support, expected.support)
        np.testing.assert_array_equal(batch.query, expected.query)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_counts(prefetch):
    loader = EpisodeLoader(Recorder(), meta_batch=2, steps=3, prefetch=prefetch)
    assert len(loader) == 3
    assert iter(loader) is loader
    assert next(loader) == (0, 2)
    assert len(loader) == 2
    assert list(loader) == [(2, 2), (4, 2)]
    assert len(loader) == 0
    assert next(loader, None) is None
    assert threads() == []


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_no_steps(prefetch):
    assert list(EpisodeLoader(Recorder(), meta_batch=1, steps=0, prefetch=prefetch)) == []


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_error_reaches_the_consumer(prefetch):
    loader = EpisodeLoader(Recorder(fails_at=4), meta_batch=2, steps=9, prefetch=prefetch)
    assert [next(loader), next(loader)] == [(0, 2), (2, 2)]
    with pytest.raises(OSError, match="no more"):
        next(loader)
    assert threads() == []
    assert list(loader) == []


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_than_prefetch_ahead(prefetch):
    sampler = Recorder()
    with EpisodeLoader(sampler, meta_batch=1, steps=50, prefetch=prefetch) as loader:
        next(loader)
        end = time.monotonic() + 5
        while len(sampler.calls) < 1 + prefetch and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.05)
        assert sampler.calls == list(range(1 + prefetch))
        assert len(threads()) == 1
    assert threads() == []


def test_no_thread_before_the_first_batch():
    with EpisodeLoader(Recorder(), meta_batch=1, steps=5):
        assert threads() == []


def test_close_in_the_middle():
    loader = EpisodeLoader(Recorder(), meta_batch=1, steps=1000)
    next(loader)
    loader.close()
    loader.close()
    assert threads() == []
    assert list(loader) == []


def test_abandoned_loader():
    loader = EpisodeLoader(Recorder(), meta_batch=1, steps=1000)
    next(loader)
    del loader
    gc.collect()
    wait_for_no_thread()


def test_error_of_the_consumer():
    def consume():
        with EpisodeLoader(Recorder(), meta_batch=1, steps=1000) as loader:
            for _ in loader:
                raise KeyError

    with pytest.raises(KeyError):
        consume()
    assert threads() == []


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [("meta_batch", 0, 1), ("first_step", -1, 0), ("steps", -2, 0), ("prefetch", -1, 0)],
)
def test_wrong_numbers(key, value, least):
    numbers = {"meta_batch": 1, "steps": 1, key: value}
    with pytest.raises(DataError, match=f"{key}: expected a number ≥ {least}, found {value}"):
        EpisodeLoader(Recorder(), **numbers)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_second_pass_is_refused(prefetch):
    """An epoch of nothing would end a training without a word."""
    loader = EpisodeLoader(Recorder(), meta_batch=1, first_step=2, steps=3, prefetch=prefetch)
    assert len([*loader]) == 3
    with pytest.raises(DataError, match="its steps are done: make another, with first_step=5"):
        list(loader)
