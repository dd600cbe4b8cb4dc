"""The embedded data set: enough characters, whole scripts held out, neither trivial nor noise."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageFont

from bilevel_data import (
    DataError,
    EpisodeSampler,
    EpisodeSpec,
    load_source,
    open_store,
    verify_store,
    write_store,
)
from bilevel_data.sources.glyphs.characters import SCRIPTS
from bilevel_data.sources.glyphs.handwriting import handwrite
from bilevel_data.sources.glyphs.source import font_folder


@pytest.fixture(scope="module")
def glyph_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("glyphs") / "glyphs.h5"
    write_store(path, load_source("glyphs"))
    return path


def nearest_neighbour(split, *, rotations, episodes=200):
    """Accuracy of 5-way 1-shot by the nearest support image, as raw pixels."""
    spec = EpisodeSpec(way=5, shot=1, query=15)
    batch = EpisodeSampler(split, spec, seed=0, rotations=rotations).batch(0, episodes)
    s = batch.support.reshape(episodes, 5, -1).astype(np.float32)
    q = batch.query.reshape(episodes, 75, -1).astype(np.float32)
    distances = (s * s).sum(-1)[:, None] - 2 * q @ s.transpose(0, 2, 1)
    return (distances.argmin(-1) == batch.query_labels).mean()


def test_counts():
    data = load_source("glyphs")
    classes = {split.name: split.class_names for split in data.splits}
    assert {name: len(found) for name, found in classes.items()} == {
        "train": 805,
        "val": 142,
        "test": 260,
    }
    scripts = {name: {c.split("/")[0] for c in found} for name, found in classes.items()}
    assert {name: len(found) for name, found in scripts.items()} == {
        "train": 10,
        "val": 4,
        "test": 5,
    }
    assert len(set.union(*scripts.values())) == 19  # no script in two splits
    assert data.rotations_are_classes
    assert "Georgian/U+10D0" in classes["test"]


def test_store(glyph_store):
    manifest = verify_store(glyph_store)
    for name, info in manifest.splits.items():
        assert info.image_shape == (28, 28, 1)
        assert info.images == 20 * len(info.class_names)
        images = open_store(glyph_store).load(name).images
        assert images[:, [0, -1]].mean() < 10  # paper is 0
        ink = (images > 127).mean(axis=(1, 2, 3))
        assert ink.min() > 0.005
        assert ink.max() < 0.7


def test_drawings_of_a_character_differ(glyph_store):
    split = open_store(glyph_store).load("val")
    assert len({image.tobytes() for image in split.images}) == len(split.images)


def test_raw_pixels_are_not_enough(glyph_store):
    store = open_store(glyph_store)
    for name in store.splits:
        for rotations in (False, True):
            accuracy = nearest_neighbour(store.load(name), rotations=rotations)
            assert 0.5 < accuracy < 0.85


def test_same_pixels_again(glyph_store):
    split = open_store(glyph_store).load("val")
    val = next(split for split in load_source("glyphs").splits if split.name == "val")
    for _ in range(2):  # and the source may be read twice
        np.testing.assert_array_equal(next(iter(val.images)), split.images[:20])


def test_handwriting_depends_on_the_key():
    shape = np.zeros((84, 84), dtype=np.float32)
    shape[20:60, 38:46] = 1
    drawings = handwrite(shape, 6, "a")
    assert drawings.shape == (6, 28, 28, 1)
    assert drawings.dtype == np.uint8
    np.testing.assert_array_equal(drawings, handwrite(shape, 6, "a"))
    assert (drawings != handwrite(shape, 6, "b")).any()
    assert drawings.max() == 255


def test_blank_paper_stays_blank():
    assert handwrite(np.zeros((84, 84), dtype=np.float32), 2, "a").max() == 0


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DataError, match=r"install bilevel-data\[glyphs\]"):
        load_source("glyphs")


def test_without_a_font(monkeypatch, tmp_path):
    import matplotlib as mpl

    monkeypatch.setattr(mpl, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"DejaVuSans\.ttf: missing"):
        load_source("glyphs")


def small(font, character):
    """A character as the rule in glyph_table wants it compared."""
    mask = font.getmask(character, mode="L")
    pixels = np.asarray(mask, dtype=np.uint8).reshape(mask.size[::-1])
    rows, columns = (np.flatnonzero(pixels.max(axis=k) > 64) for k in (1, 0))
    pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert max(pixels.shape) <= 5 * min(pixels.shape)
    height, width = (max(1, round(n * 24 / max(pixels.shape))) for n in pixels.shape)
    canvas = Image.new("L", (32, 32))
    glyph = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    canvas.paste(glyph, ((32 - width) // 2, (32 - height) // 2))
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float32)


@pytest.mark.slow
def test_no_two_characters_look_alike():
    pictures = []
    for script in SCRIPTS:
        path = font_folder() / f"{script.font}.ttf"
        font = ImageFont.truetype(path, 96, layout_engine=ImageFont.Layout.BASIC)
        pictures += [small(font, character) for character in script.characters]
    every = np.stack(pictures)

    def unit(images):
        flat = images.reshape(len(images), -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    upright, worst = unit(every), 0.0
    for k in range(4):
        for shift in ((y, x) for y in (-2, 0, 2) for x in (-2, 0, 2)):
            turned = unit(np.roll(np.rot90(every, k, axes=(1, 2)), shift, axis=(1, 2)))
            # Only earlier against later ones, the direction in which they were chosen.
            worst = max(worst, float(np.triu(upright @ turned.T, 1).max()))
    assert worst < 0.93  # 0.92, and room for another font renderer
