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
        ({"colour": 1}, "unknown option 'colour'; its options: size, channels, seed, "),
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
    with pytest.raises(DataError, match=r"found 2 \(a, b\): .* bilevel-predict"):
        load_source("folder", tmp_path)
    put(tmp_path / "c", count=1)
    with pytest.raises(DataError, match=r"at least 2 pictures in a class, found 1 .*: c \(1\):"):
        load_source("folder", tmp_path)
    (tmp_path / "c" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"expected pictures only .*, found 1 .*: c/notes\.txt"):
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
    Image.new("CMYK", (4, 4)).save(path, "JPEG")
    with pytest.raises(DataError, match=r"0\.png: colours in CMYK"):
        build(pictures)


def test_picture_that_vanished(pictures):
    data = load_source("folder", pictures)
    (pictures / "class 0" / "0.png").unlink()
    with pytest.raises(DataError, match="cannot read this picture"):
        write_store(pictures / "s.h5", data)


def test_table_of_sources(tmp_path):
    assert set(SOURCES) >= {"glyphs", "omniglot", "mini-imagenet", "folder", "torchvision:NAME"}
    with pytest.raises(DataError, match=r"expected one of glyphs, .*torchvision:NAME.*, found 'x'"):
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


LITTER = (
    ".DS_Store",
    "._0.png",
    "Thumbs.db",
    "THUMBS.DB",
    "desktop.ini",
    ".ipynb_checkpoints/0-checkpoint.png",
    "__MACOSX/._0.png",
    "@eaDir/0.png",
)


@pytest.mark.parametrize("name", LITTER)
def test_what_an_operating_system_leaves(pictures, name):
    expected = load_source("folder", pictures).splits
    for folder in (pictures, pictures / "class 1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    found = load_source("folder", pictures).splits
    assert [(s.class_names, s.class_sizes) for s in found] == [
        (s.class_names, s.class_sizes) for s in expected
    ]


def test_splits_in_any_capitals(tmp_path):
    for split, name in (("Train", "a"), ("VALID", "b"), ("Testing", "c")):
        put(tmp_path / "data" / split / name)
    for path in (tmp_path, tmp_path / "data"):  # unpacked into a folder of its own
        found = load_source("folder", path).splits
        assert [(s.name, s.class_names) for s in found] == [
            ("train", ("a",)),
            ("val", ("b",)),
            ("test", ("c",)),
        ]
    put(tmp_path / "data" / "val" / "d")
    with pytest.raises(DataError, match="VALID and val are both taken for val"):
        load_source("folder", tmp_path)


def test_classes_that_lie_deeper(tmp_path):
    for group, name in (("Latin", "a"), ("Latin", "b"), ("Greek", "a")):
        put(tmp_path / "p" / group / name)
    names = {n for s in load_source("folder", tmp_path).splits for n in s.class_names}
    assert names == {"Greek/a", "Latin/a", "Latin/b"}


def test_size_and_channels_of_small_grey_pictures_are_kept(tmp_path):
    for k in range(3):
        (tmp_path / f"c{k}").mkdir()
        for i in range(2):
            Image.new("L", (32, 32), 40 * k).save(tmp_path / f"c{k}" / f"{i}.png")
    assert load_source("folder", tmp_path).splits[0].image_shape == (32, 32, 1)
    Image.new("RGB", (300, 200)).save(tmp_path / "c0" / "2.png")
    assert load_source("folder", tmp_path).splits[0].image_shape == (84, 84, 3)
    assert load_source("folder", tmp_path, channels=1).splits[0].image_shape == (84, 84, 1)
    assert load_source("folder", tmp_path, size=20).splits[0].image_shape == (20, 20, 3)


def test_all_that_cannot_be_read_is_counted_and_ten_are_named(pictures):
    for k in range(12):
        (pictures / "class 3" / f"bad {k:02}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="12 pictures cannot be read") as caught:
        build(pictures)
    assert str(caught.value).count("class 3/bad") == 10 + 1  # and the reason for the first
    assert "--skip-unreadable" in str(caught.value)
    store = build(pictures, skip_unreadable=True)
    assert store.manifest.left_out == {"unreadable": 12}
    assert sum(info.images for info in store.manifest.splits.values()) == 2 + 3 + 4 + 5 + 6


def test_what_is_no_picture_is_counted_too(pictures):
    for k in range(12):
        (pictures / "class 2" / f"{k:02}.txt").touch()
    with pytest.raises(DataError, match=r"found 12 that are none: class 2/00\.txt"):
        load_source("folder", pictures)
    assert build(pictures, skip_unreadable=True).manifest.left_out == {"unreadable": 12}


def test_classes_that_are_too_small_can_be_left_out(pictures):
    for name in ("one", "none"):
        (pictures / name).mkdir()
    Image.new("L", (8, 8)).save(pictures / "one" / "0.png")
    with pytest.raises(DataError, match=r"found 2 with fewer: none \(0\), one \(1\)"):
        load_source("folder", pictures)
    assert build(pictures, min_pictures=2).manifest.left_out == {
        "classes of fewer than 2 pictures": 2
    }
    found = load_source("folder", pictures, min_pictures=4)
    assert sorted(n for s in found.splits for n in s.class_sizes) == [4, 5, 6]
    with pytest.raises(DataError, match=r"found 1 .*: to tell these apart, give"):
        load_source("folder", pictures, min_pictures=6)
    with pytest.raises(DataError, match="no class has 99 pictures"):
        load_source("folder", pictures, min_pictures=99)


def test_pictures_of_scanners_and_microscopes(tmp_path):
    for c in range(3):
        (tmp_path / f"c{c}").mkdir()
        for k in range(2):
            values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 30 + c
            Image.fromarray(values).save(tmp_path / f"c{c}" / f"{k}.{'tif' if k else 'TIFF'}")
    source = load_source("folder", tmp_path)
    assert source.splits[0].image_shape == (8, 8, 1)
    images = next(iter(source.splits[0].images))
    expected = np.rint(np.arange(64) * 255 / 63).reshape(8, 8, 1)
    np.testing.assert_array_equal(images[0], expected)
