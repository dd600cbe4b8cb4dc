"""A store gives back what was put in, and is there whole or not at all."""

import errno
import hashlib
import os
import signal
import subprocess
import threading
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_data import (
    DataError,
    Lazy,
    Manifest,
    open_store,
    read_manifest,
    verify_store,
    write_store,
)
from bilevel_data.files import atomic
from bilevel_data.stores import writer as writer_module
from bilevel_data.stores.manifest import parse_manifest

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=6)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))


def left_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


@given(sizes=SIZES, others=SIZES, shape=SHAPES, seed=st.integers(0, 9))
def test_round_trip(tmp_path_factory, source, source_split, sizes, others, shape, seed):
    path = tmp_path_factory.mktemp("store") / "any.h5"
    data = source(
        source_split("train", sizes, shape, seed), source_split("val", others, shape, seed)
    )
    written = write_store(path, data)
    assert isinstance(written, Manifest)
    assert verify_store(path) == written == read_manifest(path)
    assert parse_manifest(written.to_json()) == written
    store = open_store(str(path))
    assert store.splits == ("train", "val")
    for given_split in data.splits:
        split = store.load(given_split.name)
        assert split.name == given_split.name
        assert split.class_names == given_split.class_names
        assert split.num_classes == len(given_split.class_names)
        assert tuple(split.class_sizes) == given_split.class_sizes
        np.testing.assert_array_equal(split.images, np.concatenate(list(given_split.images)))
        assert split.sha256 == hashlib.sha256(split.images.tobytes()).hexdigest()
        assert not split.images.flags.writeable


def test_classes_that_straddle_chunks(tmp_path, source, source_split):
    path = tmp_path / "big.h5"
    data = source(source_split("train", (7,) * 40, (84, 84, 3)))
    write_store(path, data)
    images = open_store(path).load("train").images
    np.testing.assert_array_equal(images, np.concatenate(list(data.splits[0].images)))


def test_equal_sources_give_equal_bytes(tmp_path, source):
    for name in ("a.h5", "b.h5"):
        write_store(tmp_path / name, source())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_sidecar_is_that_of_sha256sum(store_file):
    command = ["sha256sum", "--check", "--strict", f"{store_file.name}.sha256"]
    try:
        done = subprocess.run(command, cwd=store_file.parent, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs sha256sum")
    assert done.returncode == 0, done.stderr


def test_splits_are_kept_in_one_order(tmp_path, source, source_split):
    names = ("test", "train", "val")
    manifest = write_store(tmp_path / "s.h5", source(*(source_split(name) for name in names)))
    assert tuple(manifest.splits) == ("train", "val", "test")
    assert verify_store(tmp_path / "s.h5") == manifest


def test_progress_counts_images(tmp_path, source):
    seen = []
    write_store(tmp_path / "s.h5", source(), progress=lambda *pair: seen.append(pair))
    assert seen == [(3, 13), (7, 13), (9, 13), (11, 13), (13, 13)]


def test_missing_folders_are_made(tmp_path, source):
    write_store(tmp_path / "a" / "b" / "s.h5", source())
    assert left_in(tmp_path / "a" / "b") == ["s.h5", "s.h5.sha256"]


def test_existing_file_is_kept_unless_asked(store_file, source, source_split):
    before = store_file.read_bytes()
    other = source(source_split("val"))
    with pytest.raises(DataError, match="exists already"):
        write_store(store_file, other)
    assert store_file.read_bytes() == before
    manifest = write_store(store_file, other, overwrite=True)
    assert verify_store(store_file) == manifest


def test_a_strangers_file_under_the_name_of_the_checksum_is_kept(tmp_path, source):
    sidecar = tmp_path / "s.h5.sha256"
    sidecar.write_text("my own notes")
    with pytest.raises(DataError, match=r"s\.h5\.sha256: exists already, and is no checksum"):
        write_store(tmp_path / "s.h5", source())
    assert (sidecar.read_text(), left_in(tmp_path)) == ("my own notes", ["s.h5.sha256"])
    # That of a store that is gone, or whose writer was killed between the two names, is ours.
    sidecar.write_text(f"{'0' * 64}  s.h5\n")
    manifest = write_store(tmp_path / "s.h5", source())
    assert verify_store(tmp_path / "s.h5") == manifest


@pytest.mark.parametrize("there", [True, False])
def test_a_failed_rename_leaves_the_old_pair(tmp_path, source, source_split, monkeypatch, there):
    path = tmp_path / "s.h5"
    before = write_store(path, source()) if there else None
    replace = Path.replace

    def broken(self, target):
        if target == path:
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(DataError, match=r"s\.h5: cannot write the store \(Input/output error\)"):
        write_store(path, source(source_split("val")), overwrite=True)
    assert left_in(tmp_path) == (["s.h5", "s.h5.sha256"] if there else [])
    if there:
        assert verify_store(path) == before


def test_a_failure_after_the_rename_leaves_the_new_pair(
    tmp_path, source, source_split, monkeypatch
):
    path = tmp_path / "s.h5"
    write_store(path, source())
    commit = writer_module.commit

    def broken(scratch, target):
        commit(scratch, target)
        if target == path:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer_module, "commit", broken)
    with pytest.raises(DataError, match="Input/output error"):
        write_store(path, source(source_split("val")), overwrite=True)
    assert tuple(verify_store(path).splits) == ("val",)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError, DataError])
def test_failure_in_the_middle_leaves_nothing(tmp_path, source, source_split, error):
    good = source_split()

    def images():
        yield good.images[0]
        raise error("stop here")

    bad = source_split()
    object.__setattr__(bad, "images", Lazy(make=images))
    expected = DataError if error is OSError else error
    with pytest.raises(expected, match="stop here"):
        write_store(tmp_path / "s.h5", source(bad))
    assert left_in(tmp_path) == []


def test_failure_of_progress_leaves_nothing(tmp_path, source):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s.h5", source(), progress=stop)
    assert left_in(tmp_path) == []


def test_ctrl_c_ends_the_writing_after_a_class(tmp_path, source, source_split):
    """The thread that writes does not go on to the end, which nobody waits for."""
    whole, made = source_split(sizes=(2,) * 500), []
    arrays = whole.images

    def images():
        for array in arrays:
            made.append(len(array))
            if len(made) == 2:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.01)
            yield array

    object.__setattr__(whole, "images", Lazy(make=images))
    # A shell that starts the tests in the background has the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path / "s.h5", source(whole))
    finally:
        signal.signal(signal.SIGINT, before)
    assert 2 <= len(made) < 500
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300, r"cannot write here \(File name too long\): choose another"),
        ("a\x1b[2J.h5", r"a\\x1b\[2J.h5': not a name that can be printed: choose another"),
    ],
)
def test_names_that_a_store_cannot_have(tmp_path, source, name, message):
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / name, source())
    assert left_in(tmp_path) == []


def test_versions_of_what_is_not_installed(tmp_path, source, monkeypatch):
    """As where the sources are used as they are."""

    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(writer_module, "version", version)
    manifest = write_store(tmp_path / "s.h5", source())
    assert set(manifest.creator.values()) == {"unknown"}
    assert verify_store(tmp_path / "s.h5") == manifest


def test_folders_are_flushed_where_they_can_be_opened(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic, "_fsync", flushed.append)
    for system, expected in (("posix", ["scratch", tmp_path.name]), ("nt", ["scratch"])):
        scratch = tmp_path / "scratch"
        scratch.write_bytes(b"content")
        with monkeypatch.context() as patch:
            patch.setattr(os, "name", system)
            atomic.commit(scratch, tmp_path / "file")
        assert [path.name for path in flushed] == expected
        assert (tmp_path / "file").read_bytes() == b"content"
        flushed.clear()


def test_failed_overwrite_keeps_the_old_store(store_file, source):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(store_file, source(), progress=stop, overwrite=True)
    verify_store(store_file)
    assert left_in(store_file.parent) == ["tiny.h5", "tiny.h5.sha256"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_disk_is_one_line(tmp_path, source, monkeypatch, step):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    if step == "replace":
        monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(DataError, match=r"cannot write the store \(No space left on device\)"):
        write_store(tmp_path / "s.h5", source())
    assert left_in(tmp_path) == []


def test_folder_that_is_a_file(tmp_path, source):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot make this folder"):
        write_store(tmp_path / "file" / "s.h5", source())
    with pytest.raises(DataError, match="exists already"):
        write_store(tmp_path, source(), overwrite=True)


def test_folder_without_write_permission(tmp_path, source, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root, real permissions do not bind
    with pytest.raises(DataError, match="cannot write to this folder"):
        write_store(tmp_path / "s.h5", source())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name: expected a printable text"),
        ({"licence": "a\nb"}, "licence: expected a printable text"),
        ({"source": "\x1b[2J"}, "source: expected a printable text"),
        ({"rotations_are_classes": 1}, "rotations_are_classes: expected true or false"),
    ],
)
def test_texts_are_checked(tmp_path, source, change, message):
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "s.h5", source(**change))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "dev"}, "expected one or more of train, val, test"),
        ({"class_names": ("a", "a", "b")}, "no name twice"),
        ({"class_names": ("a", "b")}, "expected 2 class sizes"),
        ({"class_names": ("a", "b", "\ud800")}, "printable names"),
        ({"class_sizes": (3, 4, 0)}, "expected 3 class sizes"),
        ({"class_sizes": (3, 4, 3)}, "expected uint8"),
        ({"image_shape": (4, 4)}, "three positive whole numbers"),
        ({"image_shape": (4, 0, 1)}, "three positive whole numbers"),
        ({"images": []}, "the source gave 0"),
        ({"images": [np.zeros((3, 4, 4, 1))] * 3}, "expected uint8"),
    ],
)
def test_wrong_splits_are_refused(tmp_path, source, source_split, change, message):
    split = source_split()
    for key, value in change.items():
        object.__setattr__(split, key, value)
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "s.h5", source(split))
    assert left_in(tmp_path) == []


def test_more_classes_than_declared(tmp_path, source, source_split):
    split = source_split()
    object.__setattr__(split, "images", [*split.images, split.images[0]])
    with pytest.raises(DataError, match="more classes than it declared"):
        write_store(tmp_path / "s.h5", source(split))


def test_no_split_and_a_split_twice(tmp_path, source, source_split):
    for splits in ((), (source_split(), source_split())):
        data = source()
        object.__setattr__(data, "splits", splits)
        with pytest.raises(DataError, match="once each"):
            write_store(tmp_path / "s.h5", data)


def test_class_in_two_splits(tmp_path, source, source_split):
    test = source_split("test", (2, 2))
    object.__setattr__(test, "class_names", ("train-000", "other"))
    with pytest.raises(DataError, match="'train-000' is in two splits"):
        write_store(tmp_path / "s.h5", source(source_split(), test))


def test_unknown_split(store_file):
    with pytest.raises(DataError, match=r"\(train, test\), found 'val'"):
        open_store(store_file).load("val")


def test_a_source_that_does_not_say_how_its_images_were_made(tmp_path, source):
    with pytest.raises(DataError, match="preprocessing: expected what was done"):
        write_store(tmp_path / "s.h5", source(preprocessing=" "))
    assert list(tmp_path.iterdir()) == []
