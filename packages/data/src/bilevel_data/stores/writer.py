"""Writing a store: one HDF5 file, whole or not at all, and its checksum beside it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from h5py import h5f, h5fd, h5g, h5p
from numpy.typing import NDArray

from bilevel_data.dataset import SPLIT_NAMES, Images, SourceData, SourceSplit
from bilevel_data.duplicates import Twice
from bilevel_data.errors import DataError, WriteError
from bilevel_data.files.atomic import commit, file_sha256, read_sidecar, sidecar_path, temporary
from bilevel_data.preprocessing import Preprocessing
from bilevel_data.stores.deferred_errors import SteadyFile
from bilevel_data.stores.manifest import Manifest, SplitInfo

__all__ = ["Progress", "write_store"]

Progress = Callable[[int, int], None]

_CHUNK_BYTES = 1 << 20
_BLANK = "0" * 64


def write_store(
    path: str | Path,
    source: SourceData,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    strict: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Manifest:
    """Write a data set to one HDF5 file and its SHA-256 to `<file>.sha256`.

    Both are written under temporary names in the same folder, flushed to the disk and renamed:
    a failed run leaves nothing behind, and a killed one at most files under other names. The same
    source and versions give the same bytes.

    Args:
        path: the file, such as `glyphs.h5`; its folder is made if it is missing.
        source: the data set. One class is in memory at a time.
        progress: called with (images written, images in all) after each class.
        overwrite: replace a file that is already there.
        strict: refuse what is there twice: a class under two forms of its name, or a picture in
            two classes or splits.
        tell: called with a line for each kind of it, where it is not refused.

    Returns:
        The manifest, as it is in the file.

    Raises:
        DataError: the file exists, the folder cannot be written to, the source's arrays are not
            what it declared, or something is there twice and `strict` is set.
        WriteError: the disk is full or broken.
    """
    path = Path(path)
    try:
        taken = path.is_dir() or (path.exists() and not overwrite)
    except OSError as err:  # such as a name that is too long
        raise DataError(f"{path}: cannot write here ({err.strerror}): choose another") from None
    if not path.name.isprintable():
        raise DataError(f"{str(path)!a}: not a name that can be printed: choose another")
    if taken:
        raise DataError(
            f"{path}: exists already: choose another name, or overwrite it "
            "(overwrite=True, --overwrite)"
        )
    sidecar = sidecar_path(path)
    if not path.exists():
        _refuse_stranger(path, sidecar)
    _manifest(source, dict.fromkeys(_names(source), _BLANK))  # refuse early what can be seen now
    twice = Twice(path=path, strict=strict, tell=tell)
    twice.check_names(source)
    total = sum(sum(split.class_sizes) for split in source.splits)
    done = 0

    def report(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    with temporary(path) as scratch, temporary(sidecar) as note:
        try:
            manifest = _write_apart(scratch, source, report, twice)
            twice.check_images()
            note.write_text(f"{file_sha256(scratch)}  {path.name}\n", encoding="utf-8")
            _commit(scratch, path, note, sidecar)
        except OSError as err:
            reason = err.strerror or " ".join(str(err).split())[:120]
            raise WriteError(f"{path}: cannot write the store ({reason})") from None
    return manifest


def _refuse_stranger(path: Path, sidecar: Path) -> None:
    """Refuse to write over a file that has the name of a checksum and is none."""
    if not os.path.lexists(sidecar):
        return
    try:
        read_sidecar(path)
    except DataError:
        raise DataError(
            f"{sidecar}: exists already, and is no checksum of a store: move it away, or choose "
            "another name for the store"
        ) from None


def _commit(scratch: Path, path: Path, note: Path, sidecar: Path) -> None:
    """Give the store and its checksum their names; where that fails, the old pair stays."""
    before = sidecar.read_bytes() if sidecar.is_file() else None
    # The checksum gets its name first: where there is a store, there is its checksum.
    commit(note, sidecar)
    try:
        commit(scratch, path)
    except OSError:
        if scratch.exists():  # the store did not get its name
            with suppress(OSError):
                _put_back(sidecar, before)
        raise


def _put_back(sidecar: Path, content: bytes | None) -> None:
    if content is None:
        sidecar.unlink()
        return
    with temporary(sidecar) as copy:
        copy.write_bytes(content)
        commit(copy, sidecar)


def _names(source: SourceData) -> list[str]:
    given = [split.name for split in source.splits]
    if not given or len(set(given)) < len(given) or set(given) - set(SPLIT_NAMES):
        expected = ", ".join(SPLIT_NAMES)
        raise DataError(f"splits: expected one or more of {expected}, once each, found {given}")
    return given


def _manifest(source: SourceData, hashes: dict[str, str]) -> Manifest:
    by_name = {split.name: split for split in source.splits}
    for split in source.splits:
        _check_sizes(split)
    splits = {
        name: SplitInfo(
            class_names=by_name[name].class_names,
            images=sum(by_name[name].class_sizes),
            image_shape=by_name[name].image_shape,
            sha256=hashes[name],
        )
        for name in SPLIT_NAMES
        if name in by_name
    }
    return Manifest(
        name=source.name,
        source=source.source,
        licence=source.licence,
        preprocessing=_preprocessing(source),
        rotations_are_classes=source.rotations_are_classes,
        splits=splits,
        creator={name: _version(name) for name in ("bilevel-data", "numpy", "pillow", "h5py")},
        left_out=dict(source.left_out),
        features=source.features,
    )


def _preprocessing(source: SourceData) -> Preprocessing:
    said = source.preprocessing
    if isinstance(said, Preprocessing):
        return said
    if not said.strip():
        raise DataError("preprocessing: expected what was done to the pictures, found nothing")
    return Preprocessing.from_text(said, source.splits[0].image_shape)


def _check_sizes(split: SourceSplit) -> None:
    classes, sizes = len(split.class_names), split.class_sizes
    if len(sizes) != classes or min(sizes, default=0) < 1:
        raise DataError(f"split {split.name}: expected {classes} class sizes ≥ 1, found {sizes}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _write_apart(
    scratch: Path, source: SourceData, report: Callable[[int], None], twice: Twice
) -> Manifest:
    """Write in another thread: Ctrl-C is raised in the main one, and must not be within HDF5."""
    stop = Event()

    def checked(images: int) -> None:
        if stop.is_set():
            raise InterruptedError
        report(images)

    with ThreadPoolExecutor(1, "store-writer") as worker:
        try:
            return worker.submit(_write, scratch, source, checked, twice).result()
        finally:
            stop.set()  # where this thread was interrupted, the other one ends with its class


def _write(
    scratch: Path, source: SourceData, report: Callable[[int], None], twice: Twice
) -> Manifest:
    with SteadyFile(scratch) as disk:

        def checked(images: int) -> None:
            disk.check()
            report(images)

        with h5py.File(_create(scratch, disk)) as file:
            dtype: np.dtype[Any] = np.dtype("u1" if source.features is None else "<f4")
            hashes = {
                split.name: _write_split(file, split, dtype, checked, twice)
                for split in source.splits
            }
            manifest = _manifest(source, hashes)
            text = np.frombuffer(manifest.to_json().encode(), dtype=np.uint8)
            _write_array(file, "manifest", text)
    return manifest


def _create(scratch: Path, disk: SteadyFile) -> h5f.FileID:
    # Without times in the root group, equal content gives equal files.
    plan = h5p.create(h5p.FILE_CREATE)
    plan.set_obj_track_times(False)
    access = h5p.create(h5p.FILE_ACCESS)
    # Room for several chunks, so that one in which a class ends is not read back.
    access.set_cache(0, 521, 4 * _CHUNK_BYTES, 0.75)
    access.set_libver_bounds(h5f.LIBVER_LATEST, h5f.LIBVER_LATEST)
    access.set_fileobj_driver(h5fd.fileobj_driver, disk)
    return h5f.create(bytes(scratch), h5f.ACC_TRUNC, fcpl=plan, fapl=access)


def _write_split(
    file: h5py.File,
    split: SourceSplit,
    dtype: np.dtype[Any],
    report: Callable[[int], None],
    twice: Twice,
) -> str:
    plan = h5p.create(h5p.GROUP_CREATE)
    plan.set_obj_track_times(False)
    group = h5py.Group(h5g.create(file.id, split.name.encode(), gcpl=plan))
    offsets = np.concatenate([[0], np.cumsum(split.class_sizes)]).astype(np.int64)
    _write_array(group, "class_offsets", offsets)
    count, shape = int(offsets[-1]), split.image_shape
    rows = min(count, max(1, _CHUNK_BYTES // (dtype.itemsize * int(np.prod(shape)))))
    images = group.create_dataset(
        "images",
        shape=(count, *shape),
        dtype=dtype,
        chunks=(rows, *shape),
        fletcher32=True,
    )
    digest, classes = sha256(), 0
    for c, array in enumerate(split.images):
        _check_class(split, c, array, dtype)
        pixels = np.ascontiguousarray(array)
        images[offsets[c] : offsets[c + 1]] = pixels
        digest.update(pixels.data)
        twice.add(split.name, split.class_names[c], pixels)
        report(len(pixels))
        classes = c + 1
    if classes != len(split.class_names):
        expected = len(split.class_names)
        raise DataError(
            f"split {split.name}: expected {expected} classes, the source gave {classes}"
        )
    return digest.hexdigest()


def _check_class(split: SourceSplit, c: int, array: Images, dtype: np.dtype[Any]) -> None:
    if c >= len(split.class_names):
        raise DataError(f"split {split.name}: the source gave more classes than it declared")
    expected = (split.class_sizes[c], *split.image_shape)
    if array.dtype != dtype or array.shape != expected:
        msg = (
            f"split {split.name}, class {split.class_names[c]!r}: expected {dtype} {expected}, "
            f"found {array.dtype} {array.shape}"
        )
        raise DataError(msg)
    if not np.isfinite(array).all():
        raise DataError(
            f"split {split.name}, class {split.class_names[c]!r}: features that are not finite: "
            "use other weights"
        )


def _write_array(group: h5py.Group, name: str, array: NDArray[np.generic]) -> None:
    # One chunk, because HDF5 keeps checksums of chunks only.
    group.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)
