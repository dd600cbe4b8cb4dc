"""The reader of stores: the numbers of HDF5's own library, and a refusal of all else."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_data import DataError, open_store, write_store
from bilevel_data.stores import writer as writer_module
from bilevel_data.stores.hdf5.checksums import fletcher32, lookup3
from bilevel_data.stores.hdf5.headers import Part
from bilevel_data.stores.hdf5.reader import dataset, group, open_hdf5, read_array

NOWHERE = b"\xff" * 8


def test_lookup3_of_the_published_examples():
    """The driver of lookup3.c gives these for hashlittle with initial value 0."""
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551


@given(st.binary(min_size=1, max_size=200))
def test_fletcher32_is_that_of_hdf5(content):
    array = np.frombuffer(content, dtype=np.uint8)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        found = file.create_dataset("x", data=array, chunks=array.shape, fletcher32=True)
        _, stored = found.id.read_direct_chunk((0,))
    assert fletcher32(array) == int.from_bytes(stored[-4:], "little")


@pytest.mark.parametrize("value", [0, 1, 255])
def test_fletcher32_of_much(value):
    array = np.full(300_001, value, dtype=np.uint8)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        found = file.create_dataset("x", data=array, chunks=array.shape, fletcher32=True)
        _, stored = found.id.read_direct_chunk((0,))
    assert fletcher32(array) == int.from_bytes(stored[-4:], "little")


@pytest.mark.parametrize("sizes", [(1,), (3, 2), (400, 300), (2000, 500)])
def test_the_numbers_of_hdf5s_library(tmp_path, monkeypatch, source, source_split, sizes):
    """One chunk, several, and so many that their addresses are in pages (above 1,024)."""
    monkeypatch.setattr(writer_module, "_CHUNK_BYTES", 16 if sizes[0] > 1 else 1 << 20)
    path = tmp_path / "s.h5"
    write_store(path, source(source_split("train", sizes), source_split("val", (2, 5))))
    store = open_store(path)
    with h5py.File(path) as file:
        for name in store.splits:
            for verify in (True, False):
                split = store.load(name, verify=verify)
                np.testing.assert_array_equal(split.images, file[f"{name}/images"][:])
                np.testing.assert_array_equal(split.offsets, file[f"{name}/class_offsets"][:])
                assert split.offsets.dtype == np.int64
                assert not split.images.flags.writeable


def mend(content, start, end):
    content[end : end + 4] = lookup3(bytes(content[start:end])).to_bytes(4, "little")


def root_header(content):
    """Where the root group begins and its checksum stands."""
    start = int.from_bytes(content[36:44], "little")
    return start, start + 7 + content[start + 6]


def header_of(content, name):
    """Likewise of the object that the first link of a name leads to."""
    at = content.find(bytes([len(name)]) + name) + 1 + len(name)
    start = int.from_bytes(content[at : at + 8], "little")
    width = 1 << (content[start + 5] & 3)
    count = int.from_bytes(content[start + 6 : start + 6 + width], "little")
    return start, start + 6 + width + count


def edit(path, where, old, new, after=b""):
    """Put other bytes into a header, with a checksum that is right."""
    content = bytearray(path.read_bytes())
    start, end = where(content)
    at = content.find(old, max(start, content.find(after, start)), end)
    assert at >= 0
    content[at : at + len(new)] = new
    mend(content, start, end)
    path.write_bytes(content)


def superblock(content):
    return 0, 44


LAYOUT_BYTES = {4: bytes((4, 2, 2)), 5: bytes((5, 2, 2))}


def images(content):
    return header_of(content, b"images")


def layout_start():
    """The layout message begins with its version, which depends on HDF5's."""
    version = 5 if h5py.version.hdf5_version_tuple >= (2, 0, 0) else 4
    return LAYOUT_BYTES[version]


SPACE = bytes((2, 4, 1, 1))
EDITS = {
    "another superblock": (
        superblock,
        b"\x89HDF\r\n\x1a\n",
        b"\x89HDF\r\n\x1a\n\x01",
        "another kind",
    ),
    "superblock's sizes": (superblock, bytes((3, 8, 8, 0)), bytes((3, 4, 8, 0)), "damaged"),
    "open elsewhere": (superblock, bytes((3, 8, 8, 0)), bytes((3, 8, 8, 1)), "damaged"),
    "extended": (superblock, NOWHERE, bytes(8), "damaged"),
    "a link of another version": (
        root_header,
        b"\x01\x00\x05train",
        b"\x02\x00\x05train",
        "damaged",
    ),
    "a link's name too long": (root_header, b"\x05train", b"\xfftrain", "damaged"),
    "one name twice": (root_header, b"\x04test", b"\x04test", None),
    "a dense group": (root_header, b"\x00\x00" + NOWHERE, b"\x00\x00" + bytes(8), "many"),
    "a shared message": (root_header, b"\x06\x10\x00\x00", b"\x06\x10\x00\x02", "kept elsewhere"),
    "a message too long": (root_header, b"\x06\x10\x00\x00", b"\x06\x10\xff\x00", "damaged"),
    "continued nowhere": (
        root_header,
        b"\x06\x10\x00\x00",
        b"\x10\x10\x00\x00" + NOWHERE + bytes((8, 0, 0, 0, 0, 0, 0, 0)),
        "damaged",
    ),
    "continued for ever": (
        root_header,
        b"\x06\x10\x00\x00",
        b"\x10\x10\x00\x00" + bytes(8) + NOWHERE,
        "damaged",
    ),
    "another space": (images, SPACE, bytes((1, 4, 1, 1)), "axes"),
    "two types": (images, b"\x05\x02\x00\x01", b"\x03\x02\x00\x01", "damaged"),
    "no type": (images, b"\x03\x0c\x00\x01", b"\x05\x0c\x00\x01", "storage"),
    "external": (images, b"\x05\x02\x00\x01", b"\x07\x02\x00\x01", "storage"),
    "layout of another version": (images, layout_start(), b"\x03\x02\x02", "storage"),
    "not chunked": (images, layout_start(), layout_start()[:1] + b"\x01\x02", "storage"),
    "another count of axes": (
        images,
        layout_start() + b"\x05",
        layout_start() + b"\x04",
        "storage",
    ),
    "an unfiltered chunk": (images, layout_start(), layout_start()[:2] + b"\x00", "storage"),
    "another size of numbers": (
        images,
        layout_start() + bytes((5, 1, 9, 4, 4, 1, 1)),
        layout_start() + bytes((5, 1, 9, 4, 4, 1, 2)),
        "storage",
    ),
    "empty chunks": (
        images,
        layout_start() + bytes((5, 1, 9)),
        layout_start() + bytes((5, 1, 0)),
        "storage",
    ),
    "chunks of other images": (
        images,
        layout_start() + bytes((5, 1, 9, 4)),
        layout_start() + bytes((5, 1, 9, 2)),
        "storage",
    ),
    "a chunk of other bytes": (images, bytes((1, 0x94, 0)), bytes((1, 0x95, 0)), "damaged"),
}


@pytest.mark.parametrize("case", EDITS)
def test_edited_headers(store_file, case):
    where, old, new, message = EDITS[case]
    edit(store_file, where, old, new)
    if message is None:
        open_store(store_file)
        return
    with pytest.raises(DataError, match=message) as caught:
        open_store(store_file).load("train")
    assert str(store_file) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_same_name_twice(store_file):
    content = bytearray(store_file.read_bytes())
    start, end = root_header(content)
    old, new = b"\x00\x05train", b"\x00\x04test\x00"
    at = content.find(old, start)
    content[at : at + len(old)] = new
    mend(content, start, end)
    store_file.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|expected|not in"):
        open_store(store_file)


def test_headers_of_other_kinds(store_file):
    content = bytearray(store_file.read_bytes())
    start, _ = header_of(content, b"images")
    for place, value in ((start + 4, 1), (start + 5, 3), (start + 5, 4), (start, 0)):
        damaged = bytearray(content)
        damaged[place] = value
        store_file.write_bytes(damaged)
        with pytest.raises(DataError, match="object header"):
            open_store(store_file)
    damaged = bytearray(content)
    damaged[start + 6 : start + 8] = b"\xff\xff"  # longer than the file
    store_file.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        open_store(store_file)
    damaged[start + 5 : start + 10] = b"\x02\xff\xff\xff\xff"
    store_file.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        open_store(store_file)


def test_headers_with_times_are_read(tmp_path):
    """HDF5 can keep them; nothing here needs them."""
    path = tmp_path / "t.h5"
    with h5py.File(path, "w", libver="latest") as file:
        numbers = np.arange(6, dtype=np.uint8)
        file.create_dataset("x", data=numbers, chunks=(2,), fletcher32=True, track_times=True)
    with open_hdf5(path) as root:
        found = dataset(root, "x", np.uint8, 1)
        np.testing.assert_array_equal(read_array(root.file, found), numbers)


def test_a_part_ends_where_it_ends():
    part = Part(b"\x01\x02\x03")
    assert part.numbers(1, 2) == (1, 0x0302)
    with pytest.raises(DataError, match="damaged"):
        part.number(1)


@pytest.fixture
def paged(tmp_path, monkeypatch, source, source_split):
    """A store of which the chunks' addresses are in a table, in pages or not."""

    def make(sizes):
        monkeypatch.setattr(writer_module, "_CHUNK_BYTES", 16)
        path = tmp_path / "p.h5"
        write_store(path, source(source_split("train", sizes)))
        return path

    return make


@pytest.mark.parametrize("count", [40, 1500])
def test_damaged_tables(paged, count):
    path = paged((count, 1))
    content = path.read_bytes()
    head, block = content.find(b"FAHD"), content.find(b"FADB")
    refused = 0
    # Version, client, width, bits, length; version, client, owner; entries.
    for start, end, places in (
        (head, head + 24, (4, 5, 6, 7, 8, 16)),
        (block, None, (4, 5, 6, 14, 20)),
    ):
        for place in places:
            damaged = bytearray(content)
            damaged[start + place] ^= 0x55
            if end is not None:
                mend(damaged, start, end)
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"damaged|more than this file"):
                open_store(path)
            refused += 1
    assert refused == 11


@pytest.mark.parametrize(("count", "pages"), [(40, 0), (1500, 2)])
def test_a_table_of_another_data_set(paged, count, pages):
    """Whole, with a checksum that is right, but it says that it belongs to another one."""
    path = paged((count, 1))
    content = bytearray(path.read_bytes())
    head, block = content.find(b"FAHD"), content.find(b"FADB")
    body = (pages + 7) // 8 if pages else (count + 1) * content[head + 6]
    content[block + 6] ^= 0x55  # where the head is
    mend(content, block, block + 14 + body)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        open_store(path)


def test_a_name_that_is_not_there(store_file):
    with open_hdf5(store_file) as root:
        assert group(root, "train").members.keys() == {"images", "class_offsets"}
        for look in (group, lambda *words: dataset(*words, np.uint8, 1)):
            with pytest.raises(DataError, match=r"^dev: missing: not a store, or damaged$"):
                look(root, "dev")


def test_a_table_that_was_never_written(tmp_path, store_file):
    with h5py.File(store_file, "r+", libver="latest") as file:
        del file["train/images"]
        file.create_dataset(
            "train/images", (9, 4, 4, 1), "u1", chunks=(1, 4, 4, 1), fletcher32=True
        )
    with pytest.raises(DataError, match="more than this file"):
        open_store(store_file)


def test_too_many_chunks(store_file):
    with h5py.File(store_file, "r+", libver="latest") as file:
        del file["train/images"]
        file.create_dataset(
            "train/images", (200_001, 1, 1, 1), "u1", chunks=(1, 1, 1, 1), fletcher32=True
        )
    with store_file.open("ab") as opened:
        opened.write(bytes(300_000))
    content = bytearray(store_file.read_bytes())
    content[28:36] = len(content).to_bytes(8, "little")
    mend(content, 0, 44)
    store_file.write_bytes(content)
    with pytest.raises(DataError, match="200001 chunks, more than 200000"):
        open_store(store_file)


def test_a_chunk_that_does_not_match(store_file):
    content = bytearray(store_file.read_bytes())
    place = content.find(open_store(store_file).load("train").images.tobytes())
    content[place] ^= 1
    store_file.write_bytes(content)
    with pytest.raises(DataError, match="does not match its checksum"):
        open_store(store_file).load("train", verify=False)
    with pytest.raises(DataError, match="SHA-256"):
        open_store(store_file).load("train")


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path, source, source_split):
    path = tmp_path / "s.h5"
    write_store(path, source(source_split("train", (3, 3), (200, 200, 1))))
    with open_hdf5(path) as root:
        found = dataset(group(root, "train"), "images", np.uint8, 4)
        os.truncate(path, 60)
        with pytest.raises(DataError, match="damaged"):
            read_array(root.file, found)
        with pytest.raises(DataError, match="damaged"):
            root.file.take(found.addresses[0], 100)


def test_a_file_that_cannot_be_opened(store_file, monkeypatch):
    real, calls = Path.open, []

    def fail_later(path, *rest):
        calls.append(path)
        if len(calls) > 1:
            raise OSError(5, "Input/output error")
        return real(path, *rest)

    monkeypatch.setattr(Path, "open", fail_later)
    with pytest.raises(DataError, match="Input/output error"):
        open_store(store_file)


def test_a_split_beyond_the_limit(store_file, monkeypatch):
    monkeypatch.setenv("BILEVEL_MAX_SPLIT_BYTES", "100")
    store = open_store(store_file)
    with pytest.raises(DataError, match=r"144 bytes of images in a split, more than 100.*BILEVEL"):
        store.load("train")
    for bad in ("0", "x", "-1", "1.5", "9" * 20):
        monkeypatch.setenv("BILEVEL_MAX_SPLIT_BYTES", bad)
        with pytest.raises(DataError, match="BILEVEL_MAX_SPLIT_BYTES: expected a positive whole"):
            store.load("train")
    monkeypatch.setenv("BILEVEL_MAX_SPLIT_BYTES", " 144 ")
    assert store.load("train").num_classes == 3


def test_a_manifest_beyond_the_limit(store_file, monkeypatch):
    monkeypatch.setitem(open_store.__globals__, "_MANIFEST_BYTES", 100)
    with pytest.raises(DataError, match="manifest: more than 100 bytes"):
        open_store(store_file)
