"""Omniglot: from a small imitation made here, and from the real files where they are there."""

import io
import zipfile
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
from PIL import Image

from bilevel_data import DataError, load_source, open_store, verify_store, write_store
from bilevel_data.files.download import fetch
from bilevel_data.sources import omniglot as module_entry
from bilevel_data.sources.omniglot import OFFICIAL, Half, omniglot, read_half

HALF = Half(name="images_background", classes=4, drawings=3, md5="")
assert module_entry is omniglot


def drawing(seed=0, size=105, mode="1"):
    pixels = np.full((size, size), 255, dtype=np.uint8)
    pixels[20 + seed : 60 + seed, 30:40] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format="PNG")
    return file.getvalue()


def files(half=HALF):
    return {
        f"{half.name}/Alpha_{c // 2}/character{c % 2 + 1:02d}/{c:04d}_{k:02d}.png": drawing(c + k)
        for c in range(half.classes)
        for k in range(half.drawings)
    }


def put_zip(folder, contents, name=HALF.name, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(folder / f"{name}.zip", "w", method) as archive:
        for member, content in contents.items():
            archive.writestr(member, content)


def put_directory(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("put", [put_zip, put_directory])
def test_half(tmp_path, put):
    put(tmp_path, files())
    found = read_half(tmp_path, HALF)
    assert list(found) == [f"Alpha_{a}/character0{c}" for a in (0, 1) for c in (1, 2)]
    assert found["Alpha_1/character01"] == tuple(drawing(2 + k) for k in range(3))


def test_zip_without_a_top_directory_and_with_other_files(tmp_path):
    contents = {name.split("/", 1)[1]: content for name, content in files().items()}
    put_zip(tmp_path, {"README.txt": b"hello", **contents})
    assert len(read_half(tmp_path, HALF)) == 4


def without(contents, count):
    return dict(list(contents.items())[count:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: without(c, 1), "expected 3 drawings of 'Alpha_0/character01', found 2"),
        (lambda c: without(c, 3), "expected 4 characters, found 3"),
        (lambda c: {**c, "a/b/c/d.png": b""}, "expected 4 characters, found 5"),
        (lambda _: {}, "expected 4 characters, found 0"),
    ],
)
@pytest.mark.parametrize("put", [put_zip, put_directory])
def test_incomplete(tmp_path, put, change, message):
    (tmp_path / HALF.name).mkdir()
    put(tmp_path, {k.replace("a/b", f"{HALF.name}/b"): v for k, v in change(files()).items()})
    with pytest.raises(DataError, match=message):
        read_half(tmp_path, HALF)


@pytest.mark.parametrize("put", [put_zip, put_directory])
def test_packed_by_a_mac(tmp_path, put):
    forks = {
        f"__MACOSX/{name.rpartition('/')[0]}/._{name.rpartition('/')[2]}": b"\0\5\x16\7"
        for name in files()
    }
    beside = {f"{name.rpartition('/')[0]}/._{name.rpartition('/')[2]}": b"x" for name in files()}
    litter = {f"{HALF.name}/Alpha_0/{name}": b"x" for name in (".DS_Store", "Thumbs.db")}
    put(tmp_path, files() | forks | beside | litter)
    found = read_half(tmp_path, HALF)
    assert {name: len(drawings) for name, drawings in found.items()} == dict.fromkeys(found, 3)


PLACES = ("", "images_background", "omniglot-py", "omniglot/python")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("put", [put_zip, put_directory])
def test_unpacked_into_a_folder_of_its_own(tmp_path, put, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    put(tmp_path / place, files())
    assert len(read_half(tmp_path, HALF)) == 4
    assert len(read_half(tmp_path / place, HALF)) == 4


def test_more_than_published_is_not_incomplete(tmp_path):
    put_directory(tmp_path, {**files(), f"{HALF.name}/Alpha_0/character01/x.png": drawing()})
    with pytest.raises(DataError, match="found 4: remove what was added to it"):
        read_half(tmp_path, HALF)


def test_flat_names(tmp_path):
    put_zip(tmp_path, {"x.png": b""})
    with pytest.raises(DataError, match="expected Alphabet/character/drawing"):
        read_half(tmp_path, HALF)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"expected images_background\.zip, or it unpacked"):
        load_source("omniglot", tmp_path)
    with pytest.raises(DataError, match="give its path"):
        load_source("omniglot")


def test_unknown_split(tmp_path):
    with pytest.raises(DataError, match="expected one of santoro, vinyals, official, found 'x'"):
        load_source("omniglot", tmp_path, split="x")


def test_not_a_zip(tmp_path):
    (tmp_path / "images_background.zip").write_bytes(b"no zip at all")
    with pytest.raises(DataError, match="expected a zip"):
        read_half(tmp_path, HALF)


def test_truncated_and_flipped_zip(tmp_path):
    put_zip(tmp_path, files(), method=zipfile.ZIP_STORED)
    path = tmp_path / "images_background.zip"
    content = path.read_bytes()
    for bad in (content[:-30], content[: len(content) // 2], flip(content, 100)):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="expected a zip, cannot read it"):
            read_half(tmp_path, HALF)


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_zip_bombs(tmp_path):
    bomb = {f"{HALF.name}/A/c/1.png": bytes(1 << 20)}
    put_zip(tmp_path, bomb)
    with pytest.raises(DataError, match="unpacks to more than 65536 bytes"):
        read_half(tmp_path, HALF)
    put_zip(tmp_path, {f"{k}.txt": b"" for k in range(1000)})
    with pytest.raises(DataError, match="1000 members, more than 48"):
        read_half(tmp_path, HALF)


def test_unusual_packing(tmp_path):
    put_zip(tmp_path, files(), method=zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="unusual way"):
        read_half(tmp_path, HALF)


def imitation(folder, monkeypatch, **changes):
    """Both archives, with enough classes for the official split."""
    names = [f"B{k:02d}" for k in range(6)]
    half = replace(HALF, classes=6, drawings=2)
    contents = {
        f"{half.name}/{n}/character01/{k}.png": changes.get("png", drawing(k))
        for n in names
        for k in range(2)
    }
    put_zip(folder, contents)
    other = Half(name="images_evaluation", classes=1, drawings=2, md5="")
    put_zip(
        folder,
        {f"{other.name}/ULOG/character01/{k}.png": drawing(9 + k) for k in range(2)},
        other.name,
    )
    # The package's own name for the function hides the module of the same name.
    monkeypatch.setitem(omniglot.__globals__, "OFFICIAL", (half, other))


def test_imitation_from_end_to_end(tmp_path, monkeypatch):
    imitation(tmp_path, monkeypatch)
    data = load_source("omniglot", tmp_path, split="official")
    write_store(tmp_path / "o.h5", data)
    manifest = verify_store(tmp_path / "o.h5")
    assert [len(info.class_names) for info in manifest.splits.values()] == [1, 5, 1]
    assert manifest.licence == "MIT"
    assert manifest.rotations_are_classes
    assert "split official" in manifest.preprocessing.note
    image = open_store(tmp_path / "o.h5").load("train").images[0, :, :, 0]
    assert image.shape == (28, 28)
    assert image[10, 9] == 255  # ink, a black bar in the drawing
    assert image[0, 0] == 0


@pytest.mark.parametrize(
    ("png", "message"),
    [
        (drawing(size=64), "expected 105×105 pixels"),
        (b"no picture", "B00/character01, drawing 1: expected a picture"),
        (drawing()[:-40], "expected a picture"),
    ],
)
def test_bad_drawings(tmp_path, monkeypatch, png, message):
    imitation(tmp_path, monkeypatch, png=png)
    data = load_source("omniglot", tmp_path, split="official")
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "o.h5", data)
    assert not list(tmp_path.glob("*.h5*"))


def test_published_facts():
    assert [(half.classes, half.drawings) for half in OFFICIAL] == [(964, 20), (659, 20)]


def test_fetch(tmp_path):
    original = tmp_path / "original"
    original.write_bytes(b"content")
    good, target = md5(b"content").hexdigest(), tmp_path / "to" / "file.zip"
    fetch(original.as_uri(), target, md5=good)
    assert target.read_bytes() == b"content"
    for options, message in (
        ({"md5": "0" * 32}, f"expected MD5 {'0' * 32}, found {good}"),
        ({"md5": good, "max_bytes": 3}, "more than 3 bytes"),
    ):
        other = tmp_path / "other" / "file.zip"
        with pytest.raises(DataError, match=message):
            fetch(original.as_uri(), other, **options)
        assert list(other.parent.iterdir()) == []
    with pytest.raises(DataError, match="check the connection, or put it at"):
        fetch((tmp_path / "none").as_uri(), target, md5=good)


def test_download(tmp_path, monkeypatch):
    imitation(tmp_path, monkeypatch)
    halves = omniglot.__globals__["OFFICIAL"]
    known = tuple(
        replace(half, md5=md5((tmp_path / f"{half.name}.zip").read_bytes()).hexdigest())
        for half in halves
    )
    monkeypatch.setitem(omniglot.__globals__, "OFFICIAL", known)
    monkeypatch.setitem(omniglot.__globals__, "_URL", f"{tmp_path.as_uri()}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = load_source("omniglot", download=True, split="official")
    assert sum(len(split.class_names) for split in data.splits) == 7
    assert len(list((tmp_path / "cache" / "bilevel-data" / "omniglot").iterdir())) == 2
    monkeypatch.setitem(omniglot.__globals__, "_URL", "file:///nowhere/")
    load_source("omniglot", download=True, split="official")  # nothing is fetched again
    with pytest.raises(DataError, match="cannot fetch it"):
        load_source("omniglot", tmp_path / "new", download=True)


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ("santoro", (1100, 100, 423)),
        ("vinyals", (1028, 172, 423)),
        ("official", (813, 151, 659)),
    ],
)
def test_real_splits(real_omniglot, split, counts):
    data = load_source("omniglot", real_omniglot, split=split)
    assert tuple(len(part.class_names) for part in data.splits) == counts
    if split == "vinyals":
        val = {name.split("/")[0] for name in data.splits[1].class_names}
        assert len(val) == 5
        assert data.splits[2].class_names[0] == "Gurmukhi/character42"
    if split == "official":
        alphabets = [{name.split("/")[0] for name in part.class_names} for part in data.splits]
        assert [len(found) for found in alphabets] == [25, 5, 20]


@pytest.mark.data
@pytest.mark.slow
def test_real_store(real_omniglot, tmp_path):
    manifest = write_store(tmp_path / "o.h5", load_source("omniglot", real_omniglot))
    assert verify_store(tmp_path / "o.h5") == manifest
    assert sum(info.images for info in manifest.splits.values()) == 32_460
    images = open_store(tmp_path / "o.h5").load("test").images
    assert images.shape == (8460, 28, 28, 1)
    assert 0.05 < images.mean() / 255 < 0.15
