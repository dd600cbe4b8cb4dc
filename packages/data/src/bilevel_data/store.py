"""Reading a store: the manifest, a split, or a check of every byte."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import cast, final

import numpy as np
from h5py import h5g  # type: ignore[import-untyped]
from numpy.typing import NDArray

from bilevel_data.atomic import file_sha256, read_sidecar
from bilevel_data.contracts import Images, ImageSplit
from bilevel_data.errors import DataError
from bilevel_data.layout import Dataset, dataset, group, names, open_hdf5, read_array
from bilevel_data.manifest import Manifest, SplitInfo, parse_manifest

__all__ = ["Store", "open_store", "read_manifest", "verify_store"]

_MANIFEST_BYTES = 64 << 20


@final
@dataclass(frozen=True, kw_only=True)
class Store:
    """A store on the disk, closed: nothing of it is held open, so it may cross a fork.

    Attributes:
        path: The HDF5 file.
        manifest: What it says that it holds.
    """

    path: Path
    manifest: Manifest

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that it has, in the order train, val, test."""
        return tuple(self.manifest.splits)

    def load(self, split: str, *, verify: bool = True) -> ImageSplit:
        """Read one split into memory.

        Args:
            split: One of `splits`.
            verify: Compare the pixels with their SHA-256 (a second for 1 GB). Checksums of
                chunks are compared either way.

        Raises:
            DataError: There is no such split, or the file is damaged or not what it says.
        """
        info = self.manifest.splits.get(split)
        if info is None:
            have = ", ".join(self.splits)
            raise DataError(f"{self.path}: expected one of its splits ({have}), found {split!r}")
        room = _size(self.path)
        with open_hdf5(self.path) as root:
            parts = _check_split(root, split, info, room)
            return _load(parts, split, info, verify=verify)


def open_store(path: str | Path) -> Store:
    """Read the manifest of a store and check that its splits have the shapes it states.

    Raises:
        DataError: Not a store, damaged, or of another schema.
    """
    path = Path(path)
    with open_hdf5(path) as root:
        room = _size(path)
        manifest = _read_manifest(root, room)
        for split, info in manifest.splits.items():
            _check_split(root, split, info, room)
    return Store(path=path, manifest=manifest)


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of a store; see `open_store`."""
    return open_store(path).manifest


def verify_store(path: str | Path) -> Manifest:
    """Check all of a store: its sidecar, its structure, and the pixels of every split.

    One split is in memory at a time.

    Raises:
        DataError: Something is missing, different or damaged.
    """
    store = open_store(path)
    expected, found = read_sidecar(store.path), file_sha256(store.path)
    if found != expected:
        msg = f"expected SHA-256 {expected[:12]}…, found {found[:12]}…: damaged or replaced"
        raise DataError(f"{store.path}: {msg}: prepare the store again")
    for split in store.splits:
        store.load(split)
    return store.manifest


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as err:
        raise DataError(f"{path}: cannot read this store ({err.strerror})") from None


def _read_manifest(root: h5g.GroupID, room: int) -> Manifest:
    if b"manifest" not in root:
        raise DataError("expected a data set 'manifest': HDF5, but not a store of this package")
    found = dataset(root, "manifest", np.uint8, 1, room=min(room, _MANIFEST_BYTES))
    manifest = parse_manifest(read_array(found, np.uint8).tobytes())
    names(root, {"manifest", *manifest.splits})
    return manifest


def _check_split(
    root: h5g.GroupID, split: str, info: SplitInfo, room: int
) -> tuple[Dataset, Dataset]:
    below = group(root, split)
    names(below, {"images", "class_offsets"})
    images = dataset(below, "images", np.uint8, 4, room=room)
    offsets = dataset(below, "class_offsets", np.int64, 1, room=room)
    _expect(f"{split}/images: shape", (info.images, *info.image_shape), images.shape)
    _expect(f"{split}/class_offsets: shape", (len(info.class_names) + 1,), offsets.shape)
    return images, offsets


def _load(
    parts: tuple[Dataset, Dataset], split: str, info: SplitInfo, *, verify: bool
) -> ImageSplit:
    images = cast("Images", read_array(parts[0], np.uint8))
    offsets = cast("NDArray[np.int64]", read_array(parts[1], np.int64))
    _expect(f"{split}/class_offsets: ends", (0, info.images), (int(offsets[0]), int(offsets[-1])))
    # Compared pairwise: a difference of two hostile numbers could overflow.
    _expect(f"{split}/class_offsets: rising", True, bool((offsets[1:] > offsets[:-1]).all()))
    if verify:
        _expect(f"{split}/images: SHA-256", info.sha256, sha256(images.data).hexdigest())
    return ImageSplit(
        name=split,
        images=images,
        offsets=offsets,
        class_names=info.class_names,
        sha256=info.sha256,
    )


def _expect(what: str, expected: object, found: object) -> None:
    if found != expected:
        msg = f"{what}: expected {expected}, found {found}: damaged, prepare the store again"
        raise DataError(msg)
