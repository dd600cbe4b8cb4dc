"""How pictures become images: written down, read back, done again; the ink of drawings."""

import json

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from bilevel_data import (
    DataError,
    Preprocessing,
    common_ink,
    ink_of,
    load_source,
    open_store,
    verify_store,
    write_store,
)


def drawing(ink="dark", size=28, seed=0):
    """A few strokes that do not touch the border."""
    rng = np.random.default_rng(seed)
    picture = Image.new("L", (size, size), 250)
    draw = ImageDraw.Draw(picture)
    for _ in range(3):
        ends = rng.integers(size // 6, size - size // 6, 4).tolist()
        draw.line(ends, fill=10, width=max(2, size // 14))
    return picture if ink == "dark" else Image.eval(picture, lambda v: 255 - v)


def photograph(seed=0, size=28):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def pixels(picture):
    array = np.asarray(picture)
    return array.reshape(*array.shape[:2], -1)


@pytest.mark.parametrize("size", [20, 28, 105])
@pytest.mark.parametrize("ink", ["dark", "bright"])
def test_the_ink_of_drawings(ink, size):
    found = [ink_of(pixels(drawing(ink, size, seed))) for seed in range(20)]
    assert found == [ink] * 20
    assert common_ink(pixels(drawing(ink, size, seed)) for seed in range(5)) == ink


def test_photographs_have_no_ink():
    found = [ink_of(pixels(photograph(seed))) for seed in range(40)]
    assert found.count(None) >= 36
    assert common_ink(pixels(photograph(seed)) for seed in range(40)) is None
    assert common_ink([]) is None


def test_empty_paper_tells_nothing():
    for value in (0, 128, 255):
        assert ink_of(np.full((8, 8, 1), value, dtype=np.uint8)) is None
    assert ink_of(np.zeros((1, 1, 3), dtype=np.uint8)) is None


@given(
    st.builds(
        Preprocessing,
        size=st.tuples(st.integers(1, 99), st.integers(1, 99)),
        channels=st.sampled_from([1, 3]),
        inverted=st.booleans(),
        crop=st.booleans(),
        ink=st.sampled_from([None, "bright", "dark"]),
        note=st.sampled_from(["", "strokes of a pen", "é"]),
    )
)
def test_it_is_read_back_as_it_was_written(preparation):
    text = json.dumps(preparation.as_dict())
    assert Preprocessing.from_dict(json.loads(text)) == preparation
    assert str(preparation).isprintable()
    picture = Image.new("L" if preparation.channels == 1 else "RGB", (7, 13), 0)
    image = preparation.apply(picture)
    assert image.shape == preparation.image_shape
    assert image.dtype == np.uint8
    assert (image == (255 if preparation.inverted else 0)).all()


WORDS = {
    "28×28 Lanczos, inverted (ink 255), split santoro": (True, True, "bright"),
    "84×84 as they are, others resized whole with Lanczos, 3 channels": (False, False, None),
    "centre square, Lanczos to 84×84, 3 channel(s)": (False, True, None),
    "none": (False, True, None),
}


@pytest.mark.parametrize("text", WORDS)
def test_the_words_of_older_stores(text):
    found = Preprocessing.from_text(text, (28, 28, 1))
    assert (found.inverted, found.crop, found.ink) == WORDS[text]
    assert (found.image_shape, found.note) == ((28, 28, 1), text)


def test_a_store_of_schema_1_still_opens(tmp_path, source):
    path = tmp_path / "old.h5"
    write_store(path, source())
    with h5py.File(path, "r+", libver="latest") as file:
        record = json.loads(file["manifest"][:].tobytes())
        del record["left_out"], file["manifest"]
        record |= {"schema": 1, "preprocessing": "28×28, ink 255, turned"}
        data = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
        file.create_dataset("manifest", data=data, chunks=data.shape, fletcher32=True)
    store = open_store(path)
    assert store.manifest.preprocessing == Preprocessing(
        size=(4, 4), channels=1, inverted=True, ink="bright", note="28×28, ink 255, turned"
    )
    assert store.manifest.left_out == {}
    assert store.load("train").num_classes == 3


def test_an_image_gets_the_ink_of_the_others():
    omniglot = Preprocessing(size=(28, 28), channels=1, inverted=True, ink="bright")
    dark, bright = drawing("dark"), drawing("bright")
    np.testing.assert_array_equal(omniglot.apply(dark), 255 - pixels(dark))
    np.testing.assert_array_equal(omniglot.apply(bright), 255 - pixels(bright))  # as was done
    np.testing.assert_array_equal(omniglot.apply(dark, ink="auto"), 255 - pixels(dark))
    np.testing.assert_array_equal(omniglot.apply(bright, ink="auto"), pixels(bright))
    np.testing.assert_array_equal(omniglot.apply(bright, ink="bright"), pixels(bright))
    # A border that tells nothing: as with most of them.
    blank = Image.new("L", (28, 28), 130)
    assert (omniglot.apply(blank, ink="auto") == 125).all()
    assert (omniglot.with_common_ink("bright").apply(blank, ink="auto") == 130).all()
    photographs = Preprocessing(size=(28, 28), channels=1)
    np.testing.assert_array_equal(photographs.apply(dark, ink="auto"), pixels(dark))


def test_differences():
    weights = Preprocessing(size=(28, 28), channels=1, inverted=True, ink="bright")
    same = Preprocessing(size=(28, 28), channels=1, ink="bright", note="scanned")
    assert same.differences(weights) == ()
    dark = Preprocessing(size=(28, 28), channels=1, ink="dark")
    assert dark.differences(weights) == ("dark ink and not bright",)
    unknown = Preprocessing(size=(28, 28), channels=1)
    assert unknown.differences(weights) == ()
    whole = Preprocessing(size=(84, 84), channels=3, crop=False)
    assert len(whole.differences(weights)) == 2


def put_drawings(path, ink="dark", mode="L", size=40):
    for c in range(4):
        (path / f"c{c}").mkdir(parents=True)
        for k in range(3):
            drawing(ink, size, 10 * c + k).convert(mode).save(path / f"c{c}" / f"{k}.png")


def images_of(path, **options):
    source = load_source("folder", path, **options)
    store = path.parent / "store.h5"
    write_store(store, source, overwrite=True)
    verify_store(store)
    return source, np.concatenate([open_store(store).load(s.name).images for s in source.splits])


@pytest.mark.parametrize("ink", ["dark", "bright"])
def test_a_folder_says_what_ink_it_has(tmp_path, ink):
    put_drawings(tmp_path / "p", ink)
    source, kept = images_of(tmp_path / "p")
    assert source.preprocessing == Preprocessing(size=(40, 40), channels=1, ink=ink)
    assert len(source.remarks) == 1
    other = {"dark": "bright", "bright": "dark"}[ink]
    source, inverted = images_of(tmp_path / "p", ink=other)
    assert (source.preprocessing.ink, source.preprocessing.inverted) == (other, True)
    np.testing.assert_array_equal(inverted, 255 - kept)
    source, same = images_of(tmp_path / "p", ink=ink)
    assert (source.preprocessing.ink, source.preprocessing.inverted) == (ink, False)
    np.testing.assert_array_equal(same, kept)


def test_a_folder_of_both_inks_gets_one(tmp_path):
    put_drawings(tmp_path / "p", "dark")
    for k in range(3):
        drawing("bright", 40, k).save(tmp_path / "p" / "c3" / f"{k}.png")
    _, images = images_of(tmp_path / "p", ink="bright")
    assert {ink_of(image) for image in images} == {"bright"}


def test_a_folder_of_photographs(tmp_path):
    for c in range(4):
        (tmp_path / "p" / f"c{c}").mkdir(parents=True)
        for k in range(2):
            photograph(10 * c + k).save(tmp_path / "p" / f"c{c}" / f"{k}.png")
    source, _ = images_of(tmp_path / "p")
    assert source.preprocessing == Preprocessing(size=(28, 28), channels=3)
    assert source.remarks == ()


def test_unknown_ink(tmp_path):
    with pytest.raises(DataError, match="ink: expected keep, bright or dark, found 'white'"):
        load_source("folder", tmp_path, ink="white")
