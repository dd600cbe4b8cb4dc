"""Class splits and the random numbers below them."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_data import DataError
from bilevel_data.episodes.counter_random import choose, permutation, uniform, words
from bilevel_data.splits import (
    EVALUATION_ALPHABETS,
    by_fraction,
    from_file,
    official,
    santoro,
    vinyals,
)

FROZEN = [4249316608792540176, 398813163331730794, 9988373434847145852]
PERMUTATION = [1, 0, 3, 7, 2, 5, 6, 9, 4, 8]
BY_FRACTION = ("class 12", "class 15", "class 30")
SANTORO = ("class 10", "class 27", "class 41", "class 5", "class 6")
NAMES = [f"class {k}" for k in range(50)]


def check_partition(splits, names):
    assert list(splits) == ["train", "val", "test"]
    assert sorted(sum(splits.values(), ())) == sorted(names)
    assert all(list(group) == sorted(group) and group for group in splits.values())


def test_words_are_frozen():
    """Changing them would change every episode ever reported."""
    assert words("key", 3).tolist() == FROZEN
    assert words("key", 0).tolist() == []
    assert permutation(10, "key").tolist() == PERMUTATION


def test_streams_do_not_overlap():
    streams = [words("key", 64, stream=k) for k in (0, 1, 2, 2**63, 2**64 - 1)]
    assert len(set(np.concatenate(streams).tolist())) == 5 * 64
    assert not set(words("key", 64).tolist()) & set(words("kez", 64).tolist())


def test_uniform_stays_below_one():
    ends = uniform(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert ends.tolist() == [0.0, 1 - 2**-53]


@given(k=st.integers(1, 8), extra=st.integers(0, 20), key=st.text(max_size=5))
def test_choose_draws_different_numbers(k, extra, key):
    sizes = np.array([[k, k + extra, k + 2 * extra]])
    drawn = choose(words(key, 6 * k).reshape(1, 3, 2, k), sizes)
    assert drawn.shape == (1, 3, k)
    assert (drawn >= 0).all()
    assert (drawn < sizes[..., None]).all()
    assert all(len(set(row)) == k for row in drawn[0].tolist())


def test_choose_is_uniform_at_each_place():
    count, k, size = 20_000, 3, 5
    drawn = choose(words("u", count * 2 * k).reshape(count, 2, k), np.full(count, size))
    codes, seen = np.unique(drawn @ [25, 5, 1], return_counts=True)
    assert len(codes) == 60  # every ordered choice
    expected = count / 60
    assert ((seen - expected) ** 2 / expected).sum() < 110  # chi-square, 59 degrees, p = 6e-5


@given(count=st.integers(3, 200), seed=st.integers(-5, 5))
def test_by_fraction_is_a_partition(count, seed):
    names = [f"c{k}" for k in range(count)]
    splits = by_fraction(names, seed=seed)
    check_partition(splits, names)
    assert splits == by_fraction(names[::-1], seed=seed)
    assert abs(len(splits["val"]) - 0.16 * count) <= 1
    assert abs(len(splits["test"]) - 0.20 * count) <= 1


def test_by_fraction_depends_on_the_seed():
    assert by_fraction(NAMES) != by_fraction(NAMES, seed=1)
    assert by_fraction(NAMES)["test"][:3] == BY_FRACTION


@pytest.mark.parametrize("fractions", [(1, 0, 0), (0.5, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_wrong_fractions(fractions):
    with pytest.raises(DataError, match="shares with sum 1"):
        by_fraction(NAMES, fractions)


@pytest.mark.parametrize("names", [[], ["a", "b"], ["a", "b", "b", "c"]])
def test_too_few_or_repeated_names(names):
    with pytest.raises(DataError, match="at least 3 different names"):
        by_fraction(names)


def test_santoro():
    splits = santoro(NAMES, train=30, val=5)
    check_partition(splits, NAMES)
    assert [len(group) for group in splits.values()] == [25, 5, 20]
    assert splits == santoro(NAMES[::-1], train=30, val=5)
    assert splits["val"] == SANTORO
    with pytest.raises(DataError, match="at least 1201"):
        santoro(NAMES)


def test_vinyals():
    names = [f"Gurmukhi/character{k:02d}" for k in range(40, 46)]
    names += ["Hebrew/character01", "Latin/character01", "Angelic/character03", "ULOG/character01"]
    splits = vinyals(names)
    check_partition(splits, names)
    assert splits["val"] == ("Hebrew/character01",)
    assert splits["test"] == (*(f"Gurmukhi/character{k}" for k in range(42, 46)), names[-1])


def test_official():
    background = [f"B{k:02d}/character01" for k in range(30)]
    evaluation = [f"{name}/character01" for name in EVALUATION_ALPHABETS]
    splits = official(evaluation + background)
    check_partition(splits, evaluation + background)
    assert [len(group) for group in splits.values()] == [25, 5, 20]
    assert splits["val"] == tuple(background[25:])
    with pytest.raises(DataError, match="none is left for test"):
        official(background)


def test_a_file_of_splits_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "pipe", "no plain file"), (tmp_path / "none", "No such file")):
        with pytest.raises(DataError, match=f"{says}.*: give another"):
            from_file(NAMES, path)
