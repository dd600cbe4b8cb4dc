"""mini-ImageNet: from small imitations made here, and from the real zip where it is there."""

import io
import os
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from bilevel_data import DataError, load_source, open_store, verify_store, write_store
from bilevel_data.files import file_tree as tree_module
from bilevel_data.sources.decode import read_pictures

LISTS = {"train": {"n01": 3, "n02": 2}, "val": {"n03": 2}, "test": {"n04": 2}}


def pixels(label, k, shape=(84, 84, 3)):
    return np.random.default_rng([int(label[1:]), k]).integers(0, 256, shape, dtype=np.uint8)


def picture(array, format="PNG", mode=None):
    file = io.BytesIO()
    found = Image.fromarray(array)
    if mode is not None:
        found = Image.frombytes(mode, found.size, array.tobytes())
    found.save(file, format=format)
    return file.getvalue()


def rows(classes):
    return [f"{label}{k}.png,{label}" for label, count in classes.items() for k in range(count)]


def table(lines):
    return "".join(f"{line}\n" for line in ["filename,label", *lines]).encode()


def contents(splits=("train", "val", "test"), tree=False, top="mini-imagenet/"):
    """Names and bytes of a small imitation, in `images/` or in a directory a class."""
    files = {}
    for split in splits:
        files[f"{top}{split}.csv"] = table(rows(LISTS[split]))
        for label, count in LISTS[split].items():
            for k in range(count):
                name = f"{top}{label if tree else 'images'}/{label}{k}.png"
                files[name] = picture(pixels(label, k))
    return files


def put_zip(folder, files, method=zipfile.ZIP_DEFLATED):
    path = folder / "mini.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def put_folder(folder, files):
    path = folder / "mini"
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


both = pytest.mark.parametrize("put", [put_zip, put_folder])


def refused(path, message):
    with pytest.raises(DataError, match=message) as caught:
        load_source("mini-imagenet", path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500


@both
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("top", ["", "mini-imagenet/", "a/b/"])
def test_every_layout_gives_the_same_store(tmp_path, put, tree, top):
    write_store(
        tmp_path / "m.h5", load_source("mini-imagenet", put(tmp_path, contents(tree=tree, top=top)))
    )
    manifest = verify_store(tmp_path / "m.h5")
    assert "research" in manifest.licence
    assert not manifest.rotations_are_classes
    store = open_store(tmp_path / "m.h5")
    assert store.splits == ("train", "val", "test")
    for name in store.splits:
        split, classes = store.load(name), LISTS[name]
        assert split.class_names == tuple(classes)
        assert split.class_sizes.tolist() == list(classes.values())
        expected = [pixels(label, k) for label, count in classes.items() for k in range(count)]
        np.testing.assert_array_equal(split.images, expected)


@pytest.mark.parametrize("splits", [("train",), ("train", "val"), ("val", "test"), ("test",)])
def test_any_of_the_splits(tmp_path, splits):
    data = load_source("mini-imagenet", put_zip(tmp_path, contents(splits)))
    assert tuple(split.name for split in data.splits) == splits
    assert data.source.endswith(", ".join(f"{split}.csv" for split in splits))


def test_rows_in_any_order_give_the_same_bytes(tmp_path):
    files = contents()
    made = []
    for lines in (rows(LISTS["train"]), rows(LISTS["train"])[::-1]):
        files["mini-imagenet/train.csv"] = table(lines)
        write_store(
            tmp_path / f"{len(made)}.h5", load_source("mini-imagenet", put_zip(tmp_path, files))
        )
        made.append((tmp_path / f"{len(made)}.h5").read_bytes())
    assert made[0] == made[1]


def test_other_sizes_and_kinds(tmp_path):
    """Whole pictures are resized with Lanczos; grey ones get three equal channels."""
    wide = pixels("n1", 0, (40, 120, 3))
    grey = pixels("n1", 1, (84, 84))
    compressed = picture(pixels("n1", 2), "JPEG")
    files = {
        "train.csv": table(["a.png,c", "b.png,c", "d.JPEG,c"]),
        "images/a.png": picture(wide),
        "images/b.png": picture(grey),
        "images/d.JPEG": compressed,
    }
    (split,) = load_source("mini-imagenet", put_zip(tmp_path, files)).splits
    ((first, second, third),) = split.images
    expected = Image.fromarray(wide).resize((84, 84), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(first, np.asarray(expected))
    np.testing.assert_array_equal(second, np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(third, np.asarray(Image.open(io.BytesIO(compressed))))


@both
def test_what_file_managers_leave_is_no_picture(tmp_path, put):
    extra = {
        "__MACOSX/mini-imagenet/images/._n010.png": b"x",
        "__MACOSX/mini-imagenet/._train.csv": b"x",
        "mini-imagenet/.DS_Store": b"x",
        "mini-imagenet/README.txt": b"hello",
    }
    assert len(load_source("mini-imagenet", put(tmp_path, contents() | extra)).splits) == 3


def without(name):
    return lambda files: {key: value for key, value in files.items() if not key.endswith(name)}


def plus(name, content):
    return lambda files: {**files, f"mini-imagenet/{name}": content}


CHANGES = [
    (without("/n010.png"), "train.csv lists 1 pictures .* such as 'n01/n010.png': add them"),
    (without(".png"), "train.csv lists 5 pictures .* such as 'n01/n010.png'"),
    (without("test.csv"), "train.csv, val.csv, found 2 .*n040.png': add test.csv, or remove"),
    (plus("images/x.jpg", b""), "found 1 that are in none, such as '.*/x.jpg': remove them"),
    (plus("more/x.png", b""), "found 1 that are in none"),
    (
        without(".csv"),
        "at least one of train.csv, val.csv, test.csv in it, .* found none: add the lists",
    ),
    (plus("again/val.csv", b""), "expected one val.csv, found .*: keep one"),
    (plus("more/images/n010.png", b""), "expected a picture once, found '.*' and '.*': remove"),
    (plus("n01/n010.png", b""), "found 1 that are in none, such as 'mini-imagenet/n01/n010.png'"),
    (plus("val.csv", table(["n010.png,n01"])), "label 'n01' is in train and in val"),
    (plus("val.csv", table(["n010.png,n03"])), "'.*n010.png' is listed under two labels"),
    (plus("val.csv", table(["n030.png,n03"] * 2)), "line 3: 'n030.png' is listed twice"),
    (plus("val.csv", table([])), "found an empty list"),
    (plus("val.csv", b""), r"expected the columns filename,label, found \[\]"),
    (plus("val.csv", b"label,name\n"), "expected the columns filename,label"),
    (plus("val.csv", b"label,filename\n"), "found an empty list"),
    (plus("val.csv", b"\xff\xfe"), "expected csv in UTF-8"),
    (plus("val.csv", table(['"open'])), "expected csv in UTF-8"),
    (plus("val.csv", table(["x" * 200_000 + ".png,n03"])), "expected csv in UTF-8"),
    (plus("val.csv", table(["n030.png"])), r"line 2: expected a file \(.jpg .jpeg .png\) and a"),
    (plus("val.csv", table(["n030.png,n03,5"])), "line 2: expected a file"),
    (plus("val.csv", table(["n030.gif,n03"])), "line 2: expected a file"),
    (plus("val.csv", table(["n030.png, "])), "line 2: expected a file"),
    (plus("val.csv", table(["n030.png,\x1b[2J"])), r"line 2: expected a file .*\\x1b"),
    (plus("val.csv", table(["n030\0.png,n03"])), "line 2: expected a file|cannot read it"),
    (plus("val.csv", table(["../../../etc/passwd.png,n03"])), "val.csv lists 1 pictures"),
    (plus("val.csv", bytes((8 << 20) + 1)), "more than 8388608 bytes"),
]


@both
@pytest.mark.parametrize(("change", "message"), CHANGES, ids=range(len(CHANGES)))
def test_wrong_files(tmp_path, put, change, message):
    refused(put(tmp_path, change(contents())), message)


@both
def test_a_csv_from_a_spreadsheet(tmp_path, put):
    """A byte-order mark, CRLF, quotes and empty lines mean nothing."""
    lines = "".join(f'"{row.split(",")[0]}",{row.split(",")[1]}\r\n' for row in rows(LISTS["val"]))
    text = f"\ufefffilename,label\r\n{lines}\r\n\r\n"
    files = contents(("train",)) | contents(("val",)) | {"mini-imagenet/val.csv": text.encode()}
    data = load_source("mini-imagenet", put(tmp_path, files))
    assert [split.class_sizes for split in data.splits] == [(3, 2), (2,)]


WRITTEN = {
    "a space after the comma": "filename, label\n{0}, {1}\n{2}, {3}\n",
    "semicolons and a byte-order mark": "\ufefffilename;label\r\n{0};{1}\r\n{2};{3}\r\n",
    "tabs": "filename\tlabel\n{0}\t{1}\n{2}\t{3}\n",
    "another order": "label,filename\n{1},{0}\n{3},{2}\n",
    "an index column without a name": ",filename,label\n0,{0},{1}\n1,{2},{3}\n",
    "other names in capitals": "ID,Label,Image\n7,{1},{0}\n8,{3},{2}\n",
    "old line ends": "filename,label\r{0},{1}\r{2},{3}\r",
}


@pytest.mark.parametrize("case", WRITTEN)
def test_lists_as_people_have_them(tmp_path, case):
    text = WRITTEN[case].format("n030.png", "n03", "n031.png", "n03")
    files = contents(("val",)) | {"mini-imagenet/val.csv": text.encode()}
    (split,) = load_source("mini-imagenet", put_zip(tmp_path, files)).splits
    assert (split.class_names, split.class_sizes) == (("n03",), (2,))


@both
def test_directories_in_the_place_of_lists(tmp_path, put):
    files = {
        f"data/{split}/{label}/{k}.jpg": picture(pixels(label, k), "JPEG")
        for split, label in (("Train", "n01"), ("VAL", "n03"), ("Test", "n04"))
        for k in range(2)
    } | {"data/__MACOSX/Train/n01/._0.jpg": b"x", "data/cache.pkl": b"x"}
    data = load_source("mini-imagenet", put(tmp_path, files))
    assert [(s.name, s.class_names, s.class_sizes) for s in data.splits] == [
        ("train", ("n01",), (2,)),
        ("val", ("n03",), (2,)),
        ("test", ("n04",), (2,)),
    ]
    assert write_store(tmp_path / "m.h5", data).splits["val"].images == 2


def test_pickles_are_never_read(tmp_path):
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refused(tmp_path, "'mini-imagenet-cache-train.pkl' is a pickle")


@both
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", r"expected a picture \(JPEG, PNG\), cannot read it"),
        (picture(pixels("n1", 0), "GIF"), "expected a picture"),
        (picture(pixels("n1", 0))[:-3000], "expected a picture"),
        (picture(np.zeros((84, 84, 4), dtype=np.uint8), "JPEG", "CMYK"), "colours in CMYK: save"),
        (picture(np.zeros((9000, 9000), dtype=bool)), "81000000 pixels, more than 64000000"),
    ],
)
def test_bad_pictures(tmp_path, put, content, message):
    files = contents() | {"mini-imagenet/images/n021.png": content}
    path = put(tmp_path, files)
    data = load_source("mini-imagenet", path)
    with pytest.raises(DataError, match=message) as caught:
        write_store(tmp_path / "m.h5", data)
    assert "mini-imagenet/images/n021.png" in str(caught.value)
    assert not list(tmp_path.glob("*.h5*"))


def test_nothing_there(tmp_path):
    for path in (None, tmp_path / "no.zip"):
        refused(path, "expected its zip, or the folder")
    refused(tmp_path, "expected at least one of")
    (tmp_path / "text.zip").write_bytes(b"no zip")
    refused(tmp_path / "text.zip", "expected a zip, cannot read it")


def test_truncated_and_flipped_zips(tmp_path):
    path = put_zip(tmp_path, contents(), zipfile.ZIP_STORED)
    content = path.read_bytes()
    for bad in (content[:-30], content[: len(content) // 2]):
        path.write_bytes(bad)
        refused(path, "expected a zip")
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(DataError, match="expected a zip, cannot read it"):
        write_store(tmp_path / "m.h5", load_source("mini-imagenet", path))


def test_no_damage_of_the_directory_escapes(tmp_path):
    """Every byte of the zip's central directory changed in turn: a store or one line."""
    path = put_zip(tmp_path, contents(("test",)), zipfile.ZIP_STORED)
    content = path.read_bytes()
    good = bad = 0
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        try:
            for split in load_source("mini-imagenet", path).splits:
                list(split.images)
            good += 1
        except DataError:
            bad += 1
    assert bad > good > 0


def test_bombs(tmp_path, monkeypatch):
    bomb = put_zip(tmp_path, contents() | {"mini-imagenet/images/n010.png": bytes(33 << 20)})
    with pytest.raises(DataError, match="unpacks to more than 33554432 bytes"):
        write_store(tmp_path / "m.h5", load_source("mini-imagenet", bomb))
    monkeypatch.setenv("BILEVEL_MAX_ENTRIES", "5")
    refused(bomb, "12 members, more than 5")
    refused(put_folder(tmp_path, contents()), "more than 5 files")


def test_two_members_of_one_name(tmp_path):
    path = put_zip(tmp_path, contents())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("mini-imagenet/train.csv", table([]))
    refused(path, "two members of one name")


def test_unusual_packing(tmp_path):
    refused(put_zip(tmp_path, contents(), zipfile.ZIP_LZMA), "unusual way")


def test_pipes_and_folders_are_not_opened(tmp_path):
    path = put_folder(tmp_path, contents())
    (path / "mini-imagenet" / "images" / "n010.png").unlink()
    os.mkfifo(path / "mini-imagenet" / "images" / "n010.png")
    data = load_source("mini-imagenet", path)
    with pytest.raises(DataError, match="expected a plain file"):
        write_store(tmp_path / "m.h5", data)


def test_linked_folder(tmp_path):
    path = put_folder(tmp_path, contents(top=""))
    (path / "images").rename(tmp_path / "elsewhere")
    (path / "images").symlink_to(tmp_path / "elsewhere")
    assert len(load_source("mini-imagenet", path).splits) == 3


def test_a_zip_replaced_after_it_was_listed(tmp_path):
    path = put_zip(tmp_path, contents())
    data = load_source("mini-imagenet", path)
    put_zip(tmp_path, without("n021.png")(contents()))
    with pytest.raises(DataError, match=r"'mini-imagenet/images/n021\.png' has gone"):
        write_store(tmp_path / "m.h5", data)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def walk(path, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", str(path)))
        return iter(())

    monkeypatch.setattr(tree_module.os, "walk", walk)
    refused(tmp_path, "cannot read it .Permission denied.*make it readable")


def test_pictures_come_in_order_and_filters_are_left_alone():
    files = [(f"{k}.png", picture(np.full((3, 3, 3), k, dtype=np.uint8))) for k in range(100)]
    before = list(warnings.filters)
    read = read_pictures(iter(files), np.asarray, channels=3)
    for k, found in enumerate(read):
        assert (found == k).all()
        assert warnings.filters == before
    assert k == 99


@pytest.mark.data
@pytest.mark.nightly
def test_real_store(real_mini_imagenet, tmp_path):
    write_store(tmp_path / "m.h5", load_source("mini-imagenet", real_mini_imagenet))
    manifest = verify_store(tmp_path / "m.h5")
    assert {name: (len(s.class_names), s.images) for name, s in manifest.splits.items()} == {
        "train": (64, 38_400),
        "val": (16, 9_600),
    }
    val = open_store(tmp_path / "m.h5").load("val")
    assert set(val.class_sizes.tolist()) == {600}


@pytest.mark.data
def test_real_pixels(real_mini_imagenet):
    """The first class of a split holds the pictures of the zip as Pillow decodes them."""
    data = load_source("mini-imagenet", real_mini_imagenet)
    found = {part.name: (len(part.class_names), len(set(part.class_names))) for part in data.splits}
    assert found == {"train": (64, 64), "val": (16, 16)}
    first = next(iter(data.splits[1].images))
    label = data.splits[1].class_names[0]
    with zipfile.ZipFile(real_mini_imagenet) as archive:
        names = sorted(name for name in archive.namelist() if f"/{label}" in name)
        assert len(names) == len(first) == 600
        for k in (0, 1, 599):
            expected = np.asarray(Image.open(archive.open(names[k])).convert("RGB"))
            np.testing.assert_array_equal(first[k], expected)
