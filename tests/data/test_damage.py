"""Damaged, foreign and hostile files are refused with one line."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest

from bilevel_data import DataError, open_store, verify_store


def read_all(path):
    store = open_store(path)
    return {name: store.load(name) for name in store.splits}


def refused(path, message=None):
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert len(text) < 500


def test_missing(tmp_path):
    refused(tmp_path / "no.h5", "No such file")


def test_empty(tmp_path):
    path = tmp_path / "empty.h5"
    path.touch()
    refused(path, "empty file")


def test_not_hdf5(tmp_path):
    path = tmp_path / "text.h5"
    path.write_text("hello, this is no store at all")
    refused(path, "another kind of file")


def test_folder_and_pipe(tmp_path):
    refused(tmp_path, "not a plain file")
    os.mkfifo(tmp_path / "pipe.h5")
    refused(tmp_path / "pipe.h5", "not a plain file")


def test_hdf5_of_somebody_else(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = [1, 2, 3]
    refused(path, "not a store of this package")


def test_signature_only(tmp_path):
    path = tmp_path / "head.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    refused(path, "truncated or damaged")


def test_every_truncation(store_file):
    content = store_file.read_bytes()
    for length in range(0, len(content), 101):
        store_file.write_bytes(content[:length])
        refused(store_file)


def test_flipped_bits(store_file):
    """A flip anywhere is found, or (in bytes that mean nothing) changes nothing."""
    content, whole = store_file.read_bytes(), read_all(store_file)
    found = 0
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place // 7 % 8)
        store_file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"SHA-256|truncated|another kind"):
            verify_store(store_file)
        try:
            splits = read_all(store_file)
        except DataError:
            found += 1
            continue
        for name, split in splits.items():
            assert split.class_names == whole[name].class_names
            np.testing.assert_array_equal(split.images, whole[name].images)
            np.testing.assert_array_equal(split.offsets, whole[name].offsets)
    assert found > len(content) / 7 / 2


def test_pixels_that_do_not_match_their_hash(store_file):
    with h5py.File(store_file, "r+", libver="latest") as file:
        file["train/images"][0, 0, 0, 0] ^= 1
    refused(store_file, "SHA-256.*damaged")
    open_store(store_file).load("train", verify=False)


def test_sidecar(store_file):
    sidecar = store_file.with_name("tiny.h5.sha256")
    good = sidecar.read_text()
    for bad in ("", "abc", good.upper(), good.replace("tiny", "other"), good * 2, "\xff" * 70):
        sidecar.write_text(bad, encoding="latin-1")
        with pytest.raises(DataError, match=r"tiny\.h5\.sha256: expected"):
            verify_store(store_file)
    sidecar.write_text(good.translate(str.maketrans("0123", "1230")))
    with pytest.raises(DataError, match="damaged or replaced"):
        verify_store(store_file)
    sidecar.unlink()
    with pytest.raises(DataError, match="missing"):
        verify_store(store_file)
    os.mkfifo(sidecar)
    with pytest.raises(DataError, match="expected a line of sha256sum, found no plain file"):
        verify_store(store_file)
    assert len(read_all(store_file)) == 2


def edit_manifest(path, change):
    with h5py.File(path, "r+", libver="latest") as file:
        record = json.loads(file["manifest"][:].tobytes())
        text = change(record)
        text = json.dumps(record if text is None else text) if not isinstance(text, str) else text
        del file["manifest"]
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        file.create_dataset("manifest", data=data, chunks=data.shape, fletcher32=True)


MANIFESTS = {
    "not JSON": (lambda _: "{", "expected JSON"),
    "deep": (lambda _: "[" * 100_000, "expected JSON"),
    "a list": (lambda _: [1], "expected format"),
    "another format": (lambda m: m.update(format="x"), "expected format"),
    "a newer schema": (lambda m: m.update(schema=4), "reads schema 1 to 3, found 4"),
    "schema true": (lambda m: m.update(schema=True), "reads schema 1 to 3, found True"),
    "no schema": (lambda m: m.pop("schema") and None, "reads schema 1 to 3, found None"),
    "a key more": (lambda m: m.update(more=1), "keys"),
    "a key less": (lambda m: m.pop("licence") and None, "keys"),
    "splits a list": (lambda m: m.update(splits=[]), "splits: expected an object"),
    "no splits": (lambda m: m.update(splits={}), "splits: expected some of"),
    "creator a text": (lambda m: m.update(creator="x"), "creator"),
    "preparation a number": (lambda m: m.update(preprocessing=1), "preprocessing: keys"),
    "preparation a text of no words": (lambda m: m.update(preprocessing=" "), "printable text"),
    "preparation with a key more": (
        lambda m: m["preprocessing"].update(x=1),
        "preprocessing: keys",
    ),
    "size a text": (lambda m: m["preprocessing"].update(size="84"), "preprocessing: size"),
    "size huge": (lambda m: m["preprocessing"].update(size=[2**40, 1]), "preprocessing: size"),
    "ink of another kind": (lambda m: m["preprocessing"].update(ink="x"), "preprocessing: ink"),
    "inverted a number": (lambda m: m["preprocessing"].update(inverted=1), "inverted"),
    "note that steers": (lambda m: m["preprocessing"].update(note="\x1b[2J"), "note"),
    "left out a list": (lambda m: m.update(left_out=[]), "left_out: expected an object"),
    "left out a text": (lambda m: m.update(left_out={"unreadable": "7"}), "left_out"),
    "name a number": (lambda m: m.update(name=1), "name: expected a printable text"),
    "escape sequence": (lambda m: m.update(name="\x1b[2J"), "name: expected a printable text"),
    "split a list": (lambda m: m["splits"].update(train=[]), "split: expected an object"),
    "split renamed": (
        lambda m: m["splits"].update(val=m["splits"].pop("train")),
        "splits: expected some of",
    ),
    "split forgotten": (lambda m: m["splits"].pop("test") and None, "expected .*in it"),
    "names a text": (lambda m: m["splits"]["train"].update(class_names="abc"), "a list"),
    "names lists": (lambda m: m["splits"]["train"].update(class_names=[[]]), "printable names"),
    "a class less": (
        lambda m: m["splits"]["train"]["class_names"].pop() and None,
        r"shape: expected \(3,\), found \(4,\)",
    ),
    "class in two splits": (
        lambda m: m["splits"]["test"].update(class_names=["train-000", "x"]),
        "in two splits",
    ),
    "more images": (lambda m: m["splits"]["train"].update(images=10), r"\(10, 4, 4, 1\)"),
    "images true": (lambda m: m["splits"]["train"].update(images=True), "images"),
    "images huge": (lambda m: m["splits"]["train"].update(images=2**63), "images"),
    "another shape": (lambda m: m["splits"]["train"].update(image_shape=[2, 8, 1]), "shape"),
    "another hash": (lambda m: m["splits"]["train"].update(sha256="0" * 64), "SHA-256"),
    "hash of another kind": (lambda m: m["splits"]["train"].update(sha256="0" * 40), "sha256"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(store_file, case):
    change, message = MANIFESTS[case]
    edit_manifest(store_file, change)
    refused(store_file, message)


def replace(name, make):
    """Put another object in the place of a data set."""

    def change(file):
        array = file[name][()]
        del file[name]
        make(file, name, array)

    return change


def plain(**options):
    """The same numbers, written otherwise."""
    return lambda file, name, array: file.create_dataset(name, data=array, **options)


def chunked(convert):
    def make(file, name, array):
        array = np.ascontiguousarray(convert(array))
        file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)

    return make


def soft(file, name, array):
    file["elsewhere"] = array
    file[name] = h5py.SoftLink("/elsewhere")


def external_link(file, name, array):
    file[name] = h5py.ExternalLink("/etc/hostname", "/x")


def external_storage(file, name, array):
    file.create_dataset(
        name, array.shape, array.dtype, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file, name, array):
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource("/etc/hostname", "x", array.shape)
    file.create_virtual_dataset(name, layout)


def text(file, name, array):
    file.create_dataset(name, data=["a"] * 3, dtype=h5py.string_dtype())


def huge(shape, dtype="u1", chunks=None, grows=False):
    """Storage that is declared and never written, so that the file stays small."""

    def make(file, name, array):
        parts, most = chunks or (1,) * len(shape), (None, *shape[1:]) if grows else None
        file.create_dataset(name, shape, dtype, chunks=parts, maxshape=most, fletcher32=True)

    return make


def made_a_group(file, name, array):
    file.create_group(name)


def named_type(file, name, array):
    file[name] = np.dtype("u1")


def unknown_filter(file, name, array):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(array.shape)
    plan.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple(array.shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(array.dtype), space, plan)


def scalar(file, name, array):
    file.create_dataset(name, data=np.uint8(3))


IMAGES = {
    "soft link": (soft, "link that leads elsewhere"),
    "external link": (external_link, "link that leads elsewhere"),
    "external storage": (external_storage, "storage"),
    "virtual": (virtual, "storage"),
    "contiguous": (plain(), "storage"),
    "no checksum": (plain(chunks=True), "filters"),
    "compressed": (plain(chunks=True, compression="gzip", fletcher32=True), "filters"),
    "shuffled": (plain(chunks=True, shuffle=True, fletcher32=True), "filters"),
    "unknown filter": (unknown_filter, "filters"),
    "variable length": (text, "type"),
    "floats": (chunked(lambda a: a.astype("f4")), "type"),
    "signed": (chunked(lambda a: a.astype("i1")), "type"),
    "wide": (chunked(lambda a: a.astype("u2")), "type"),
    "booleans": (chunked(lambda a: a > 3), "type"),
    "compound": (chunked(lambda a: a.astype([("a", "u1")])), "type"),
    "flat": (chunked(np.ravel), "axes"),
    "scalar": (scalar, "axes"),
    "one image less": (chunked(lambda a: a[:-1]), "shape"),
    "a group": (made_a_group, "expected a data set"),
    "a type": (named_type, "storage"),
    "missing": (lambda *_: None, "expected .*in it"),
    "huge": (huge((2**40, 4, 4, 1)), "more than this file"),
    "huge and real chunks": (huge((2**20, 64, 64, 4), chunks=(2**16, 64, 64, 4)), "more than this"),
    "huge chunk": (huge((9, 4, 4, 1), chunks=(2**24, 4, 4, 1), grows=True), "more than this file"),
    "never written": (huge((9, 4, 4, 1), chunks=(9, 4, 4, 1)), "more than this file"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_hostile_images(store_file, case):
    make, message = IMAGES[case]
    with h5py.File(store_file, "r+", libver="latest") as file:
        replace("train/images", make)(file)
        if "elsewhere" in file:
            file.move("elsewhere", "test/more")
    refused(store_file, message)


OFFSETS = {
    "narrow": (chunked(lambda a: a.astype("i4")), "type"),
    "unsigned": (chunked(lambda a: a.astype("u8")), "type"),
    "falling": (chunked(lambda a: a[[0, 2, 1, 3]]), "rising"),
    "empty class": (chunked(lambda a: a[[0, 1, 1, 3]]), "rising"),
    "late start": (chunked(lambda a: np.add(a, [1, 0, 0, 0])), "ends"),
    "past the end": (chunked(lambda a: np.add(a, [0, 0, 0, 5])), "ends"),
    "overflow": (chunked(lambda a: np.array([0, -(2**63), 2**63 - 1, a[-1]])), "rising"),
    "longer": (chunked(lambda a: np.append(a, 9)), "shape"),
    "huge": (huge((2**60,), "i8"), "more than this file"),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_hostile_offsets(store_file, case):
    make, message = OFFSETS[case]
    with h5py.File(store_file, "r+", libver="latest") as file:
        replace("train/class_offsets", make)(file)
    refused(store_file, message)


MANIFEST_DATASETS = {
    "variable length": (text, "type"),
    "soft link": (soft, "link that leads elsewhere"),
    "huge": (huge((2**50,)), "more than this file"),
    "a group": (made_a_group, "expected a data set"),
    "a scalar": (scalar, "axes"),
}


@pytest.mark.parametrize("case", MANIFEST_DATASETS)
def test_hostile_manifest_datasets(store_file, case):
    make, message = MANIFEST_DATASETS[case]
    with h5py.File(store_file, "r+", libver="latest") as file:
        replace("manifest", make)(file)
    refused(store_file, message)


def test_split_that_is_no_group(store_file):
    with h5py.File(store_file, "r+", libver="latest") as file:
        del file["train"]
        file["train"] = [1]
    refused(store_file, "expected a group")


def test_split_that_is_a_link(store_file, tmp_path):
    shutil.copy(store_file, tmp_path / "copy.h5")
    with h5py.File(store_file, "r+", libver="latest") as file:
        del file["train"]
        file["train"] = h5py.ExternalLink(str(tmp_path / "copy.h5"), "/train")
    refused(store_file, "link that leads elsewhere")


def test_more_than_a_store_holds(store_file):
    with h5py.File(store_file, "r+", libver="latest") as file:
        file["test/more"] = 1
    refused(store_file, "in it")
    with h5py.File(store_file, "r+", libver="latest") as file:
        for k in range(200):
            file[f"more{k}"] = k
    refused(store_file, "in it")


def test_store_that_vanished_or_changed_since_it_was_opened(store_file):
    store = open_store(store_file)
    edit_manifest(store_file, lambda m: m.update(name="other"))
    assert store.load("train").num_classes == 3
    with h5py.File(store_file, "r+", libver="latest") as file:
        replace("train/images", chunked(lambda a: a[:-1]))(file)
    with pytest.raises(DataError, match="shape"):
        store.load("train")
    store_file.unlink()
    with pytest.raises(DataError, match="No such file"):
        store.load("train")
