"""The user's own pictures, good and bad."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bilevel_data import SOURCES, DataError, load_source, open_store, verify_store, write_store


def put(folder, count=2, suffix=".png", size=(12, 8), colour=(200, 30, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("RGB", size, colour).save(folder / f"{k}{suffix}")


def build(path, **options):
    store = path.parent / f"{path.name}.h5"
    write_store(store, load_source("folder", path, **options), overwrite=True)
    return open_store(store)


@pytest.fixture
def pictures(tmp_path):
    path = tmp_path / "pictures"
    for k in range(5):
        put(path / f"class {k}", count=2 + k, suffix=[".png", ".JPG", ".webp", ".bmp", ".gif"][k])
    return path


def test_classes_are_dealt_out(pictures):
    store = build(pictures, size=6)
    splits = [store.load(name) for name in store.splits]
    assert store.splits == ("train", "val", "test")
    assert sorted(name for split in splits for name in split.class_names) == [
        f"class {k}" for k in range(5)
    ]
    assert splits[0].images.shape[1:] == (6, 6, 3)
    for split in splits:
        expected = [2 + int(name.split()[1]) for name in split.class_names]
        assert split.class_sizes.tolist() == expected
        assert np.abs(split.images.astype(int) - [200, 30, 30]).max() < 12
    assert not store.manifest.rotations_are_classes


def test_given_splits(tmp_path):
    path = tmp_path / "p"
    for split, names in (("train", "ab"), ("test", "c")):
        for name in names:
            put(path / split / name)
    store = build(path, size=4, channels=1)
    assert store.splits == ("train", "test")
    assert store.load("train").class_names == ("a", "b")
    assert store.load("test").images.shape == (2, 4, 4, 1)


def test_same_class_in_two_given_splits(tmp_path):
    for split in ("train", "test"):
        put(tmp_path / "p" / split / "a")
    with pytest.raises(DataError, match="'a' is in two splits"):
        build(tmp_path / "p")


def test_centre_square_and_transparency(tmp_path):
    path = tmp_path / "p"
    for k in range(3):
        put(path / f"c{k}")
    wide = np.zeros((4, 12, 4), dtype=np.uint8)
    wide[:, 4:8] = (10, 20, 30, 255)  # what is left and right is cut off
    for k in range(2):
        Image.fromarray(wide).save(path / "c0" / f"{k}.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(path / "c1" / "0.png")
    store = build(path, size=4)
    found = {}
    for name in store.splits:
        split = store.load(name)
        found |= dict(zip(split.class_names, split.images[split.offsets[:-1]], strict=True))
    assert (found["c0"] == [10, 20, 30]).all()
    assert (found["c1"] == 255).all()


def test_camera_orientation(tmp_path):
    path = tmp_path / "p"
    for k in range(3):
        put(path / f"c{k}")
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # the upper half is white …
    exif = Image.Exif()
    exif[0x0112] = 3  # … and the camera was upside down
    for k in range(2):
        image.save(path / "c0" / f"{k}.png", exif=exif)
    store = build(path, size=8, channels=1)
    splits = [store.load(name) for name in store.splits]
    split = next(split for split in splits if "c0" in split.class_names)
    first = split.images[split.offsets[split.class_names.index("c0")], :, :, 0]
    assert first[0, 0] == 0
    assert first[-1, 0] == 255


def test_seed_deals_otherwise(tmp_path):
    path = tmp_path / "p"
    for k in range(12):
        put(path / f"c{k:02d}")
    deals = {load_source("folder", path, seed=k).splits[2].class_names for k in range(5)}
    assert len(deals) > 1


def test_litter_is_left_alone(pictures):
    (pictures / "class 0" / "Thumbs.db").touch()
    (pictures / "class 0" / ".DS_Store").touch()
    (pictures / ".git").mkdir()
    assert sum(len(split.class_names) for split in load_source("folder", pictures).splits) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: expected a whole number in 1 … 1024, found 0"),
        ({"size": 2000}, "size: expected"),
        ({"size": "84"}, "size: expected"),
        ({"channels": 2}, "channels: expected 1 or 3, found 2"),
        ({"colour": 1}, "unknown option 'colour'; its options: size, channels, seed"),
    ],
)
def test_wrong_options(pictures, options, message):
    with pytest.raises(DataError, match=message):
        load_source("folder", pictures, **options)


def test_wrong_folders(tmp_path):
    with pytest.raises(DataError, match="expected a folder"):
        load_source("folder", tmp_path / "none")
    with pytest.raises(DataError, match="expected a folder"):
        load_source("folder")
    with pytest.raises(DataError, match="expected a directory a class, found none"):
        load_source("folder", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: expected a directory a class"):
        load_source("folder", tmp_path)
    put(tmp_path / "cats")
    with pytest.raises(DataError, match=r"split directories \(train\) beside others \(cats\)"):
        load_source("folder", tmp_path)


def test_too_few_classes_and_pictures(tmp_path):
    put(tmp_path / "a")
    put(tmp_path / "b")
    with pytest.raises(DataError, match="at least 3 different names"):
        load_source("folder", tmp_path)
    put(tmp_path / "c", count=1)
    with pytest.raises(DataError, match="c: expected at least 2 pictures in a class, found 1"):
        load_source("folder", tmp_path)
    (tmp_path / "c" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"notes\.txt: expected pictures only"):
        load_source("folder", tmp_path)


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def declared(width, height):
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


BAD = {
    "empty": (b"", "cannot read it"),
    "text": (b"hello", "cannot read it"),
    "bomb": (declared(60_000, 60_000), "cannot read it|more than 64000000"),
    "big": (declared(9000, 8000), "72000000 pixels, more than 64000000"),
    "no pixels": (declared(10, 10), "cannot read it"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot read it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures(pictures, case):
    content, message = BAD[case]
    (pictures / "class 0" / "0.png").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        build(pictures)
    assert "class 0/0.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_and_deep_pictures(pictures):
    path = pictures / "class 0" / "0.png"
    path.write_bytes(path.read_bytes()[:-25])
    with pytest.raises(DataError, match=r"0\.png: expected a picture"):
        build(pictures)
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match="more than 8 bits"):
        build(pictures)


def test_picture_that_vanished(pictures):
    data = load_source("folder", pictures)
    (pictures / "class 0" / "0.png").unlink()
    with pytest.raises(DataError, match="cannot read this picture"):
        write_store(pictures / "s.h5", data)


def test_table_of_sources(tmp_path):
    assert set(SOURCES) >= {"glyphs", "omniglot", "mini-imagenet", "folder", "torchvision:NAME"}
    with pytest.raises(DataError, match=r"expected one of glyphs, .*, torchvision:NAME, found 'x'"):
        load_source("x")
    with pytest.raises(DataError, match="reads no files"):
        load_source("glyphs", tmp_path)
    with pytest.raises(DataError, match="nothing to download"):
        load_source("folder", tmp_path, download=True)
    with pytest.raises(DataError, match="its options: none"):
        load_source("glyphs", size=3)


def test_folder_store_verifies(pictures):
    build(pictures)
    verify_store(pictures.parent / "pictures.h5")
