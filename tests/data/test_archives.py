"""Pictures in a zip or a tar: as those of the folder that was packed."""

import gc
import io
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bilevel_data import DataError, WriteError, load_source, write_store


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where archives are unpacked."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def tree(tmp_path):
    """Four classes of three pictures, below a folder of their own, beside what is none."""
    top = tmp_path / "pictures"
    for c in range(4):
        (top / "set" / f"c {c}").mkdir(parents=True)
        for k in range(3):
            (top / "set" / f"c {c}" / f"{k}.png").write_bytes(picture(10 * c + k))
    (top / "README.txt").write_text("about them")
    (top / "set" / "c 0" / ".DS_Store").write_bytes(b"x")
    return top


def packed(tree, kind):
    return Path(shutil.make_archive(str(tree.parent / "packed"), kind, tree))


def stored(path, out):
    data = load_source("folder", path, size=8)
    write_store(out, data)
    return out.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_gives_the_store_of_its_folder(tmp_path, tree, scratch, kind):
    expected = stored(tree, tmp_path / "a.h5")
    assert stored(packed(tree, kind), tmp_path / "b.h5") == expected
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_images_stay_for_as_long_as_the_source(tree, scratch):
    data = load_source("folder", packed(tree, "zip"), size=8)
    gc.collect()
    (kept,) = scratch.iterdir()
    assert kept.name.startswith("packed.zip-")
    images = data.splits[0].images
    del data
    gc.collect()
    first, again = (np.concatenate(list(images)) for _ in range(2))
    assert np.array_equal(first, again)
    del images
    gc.collect()
    assert not kept.exists()


def test_members_that_lead_elsewhere_are_never_written(tmp_path, tree, scratch):
    archive = packed(tree, "tar")
    with tarfile.open(archive, "a") as file:
        for name in ("../out.png", "/out.png", "set/c 0/../../../out.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(0))
            file.addfile(member, io.BytesIO(picture(0)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"set/c 0/link{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            file.addfile(member)
    data = load_source("folder", archive, size=8)
    assert sum(sum(split.class_sizes) for split in data.splits) == 12
    assert not list(tmp_path.rglob("out.png"))
    assert not list(scratch.rglob("link*"))


def test_what_is_no_archive_of_pictures_is_refused(tmp_path, tree, scratch, monkeypatch):
    text = tmp_path / "a.txt"
    text.write_text("hello")
    cut = tmp_path / "cut.tar.gz"
    whole = packed(tree, "gztar").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    none = tmp_path / "none.zip"
    with zipfile.ZipFile(none, "w") as file:
        file.writestr("a/readme.txt", "no pictures")
    leading = tmp_path / "leading.zip"
    with zipfile.ZipFile(leading, "w") as file:
        file.writestr("../a.png", picture(0))
    for path in (text, cut, none, leading):
        for name in ("folder", "cub"):
            with pytest.raises(DataError, match=str(path.name)):
                load_source(name, path)
    for variable in ("BILEVEL_MAX_ARCHIVE_BYTES", "BILEVEL_MAX_ENTRIES"):
        with monkeypatch.context() as only:
            only.setenv(variable, "3")
            with pytest.raises(DataError, match=variable):
                load_source("folder", packed(tree, "tar"))
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_no_room(tree, monkeypatch, scratch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    archive = packed(tree, "zip")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left"):
        load_source("folder", archive)
    assert list(scratch.iterdir()) == []


def test_nowhere_to_unpack(tree, monkeypatch, tmp_path):
    archive = packed(tree, "zip")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(WriteError, match=r"packed\.zip: cannot unpack it \(No such file"):
        load_source("folder", archive)
