"""Pictures and classes that are there twice."""

import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_data import DataError, load_source, write_store
from bilevel_data.duplicates import folded, image_keys, same_images, same_names


def test_names_that_people_read_as_one():
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert same_names(["cat", composed, "dog", apart]) == [(composed, apart)]
    assert same_names(["Straße", "STRASSE", "strasse "]) == [
        ("Straße", "STRASSE"),
        ("Straße", "strasse "),
    ]
    assert same_names(["a", "b", "A/b"]) == []


@given(st.text(), st.sampled_from(["NFC", "NFD"]))
def test_folding_forgets_the_form(name, form):
    assert folded(unicodedata.normalize(form, name)) == folded(name)
    assert folded(folded(name)) == folded(name)


@given(st.lists(st.integers(0, 5), max_size=20))
def test_equal_images(values):
    images = np.array(values, dtype=np.uint8).reshape(-1, 1, 1, 1)
    pairs = same_images(image_keys(images))
    expected = [(values.index(v), k) for k, v in enumerate(values) if values.index(v) != k]
    assert pairs == expected


def with_images(split, name, others):
    """The split with some images of another one in the place of its last class."""
    images = [*list(split.images)[:-1], others]
    sizes = (*split.class_sizes[:-1], len(others))
    return replace(split, images=images, class_sizes=sizes, name=name)


def test_a_picture_in_two_splits(tmp_path, source, source_split):
    train, test = source_split(), source_split("test", (2, 2))
    leaking = source(train, with_images(test, "test", list(train.images)[1][:2]))
    lines = []
    write_store(tmp_path / "s.h5", leaking, tell=lines.append)
    (line,) = lines
    assert "2 pictures are in two classes, 2 of them in two splits" in line
    assert "train-001" in line
    assert "test-001" in line
    with pytest.raises(DataError, match="2 pictures are in two classes"):
        write_store(tmp_path / "strict.h5", leaking, strict=True)
    assert not (tmp_path / "strict.h5").exists()
    clean = source()
    write_store(tmp_path / "clean.h5", clean, strict=True, tell=lines.append)
    assert len(lines) == 1


def test_a_picture_twice_in_a_class_is_no_leak(tmp_path, source, source_split):
    train = source_split()
    doubled = with_images(train, "train", np.repeat(list(train.images)[2][:1], 3, axis=0))
    write_store(tmp_path / "s.h5", source(doubled), strict=True)


def test_one_class_under_two_forms_of_its_name(tmp_path, source, source_split):
    names = tuple(unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    split = replace(source_split(), class_names=(*names, "e"))
    lines = []
    write_store(tmp_path / "s.h5", source(split), tell=lines.append)
    assert len(lines) == 1
    assert lines[0].isprintable()
    with pytest.raises(DataError, match="two forms of their name"):
        write_store(tmp_path / "strict.h5", source(split), strict=True)


def test_links_in_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    from PIL import Image

    for c in range(3):
        (tmp_path / "p" / f"c{c}").mkdir(parents=True)
        for k in range(2):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "p" / f"c{c}" / f"{k}.png")
    (tmp_path / "p" / "link").symlink_to("c0", target_is_directory=True)
    (tmp_path / "p" / "c1" / "2.png").symlink_to("../c2/0.png")
    lines = []
    write_store(tmp_path / "s.h5", load_source("folder", tmp_path / "p"), tell=lines.append)
    assert "3 pictures are in two classes" in lines[0]
