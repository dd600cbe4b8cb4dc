"""Reading a store: the manifest, a split, or a check of every byte."""

from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import cast, final

import numpy as np
from numpy.typing import NDArray

from bilevel_data.dataset import Images, ImageSplit
from bilevel_data.episodes.episode import EpisodeSpec
from bilevel_data.episodes.sampler import EpisodeSampler
from bilevel_data.errors import DataError
from bilevel_data.files.atomic import file_sha256, read_sidecar
from bilevel_data.files.limits import MAX_SPLIT_BYTES
from bilevel_data.stores.hdf5.reader import (
    Dataset,
    Group,
    dataset,
    group,
    names,
    open_hdf5,
    read_array,
)
from bilevel_data.stores.manifest import Manifest, SplitInfo, parse_manifest

__all__ = ["Store", "open_store", "read_manifest", "verify_store"]

_MANIFEST_BYTES = 64 << 20


@final
@dataclass(frozen=True, kw_only=True)
class Store:
    """A store on the disk, closed: nothing of it is held open, so it may cross a fork.

    Attributes:
        path: the HDF5 file.
        manifest: what it says that it holds.
    """

    path: Path
    manifest: Manifest

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that it has, in the order train, val, test."""
        return tuple(self.manifest.splits)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of its images; `(1, 1, dim)` of features."""
        return next(iter(self.manifest.splits.values())).image_shape

    def episodes(
        self,
        split: str,
        *,
        way: int = 5,
        shot: int = 1,
        query: int = 15,
        rotations: bool = False,
        seed: int = 0,
    ) -> EpisodeSampler:
        """Read one split into memory and return its episodes.

        Args:
            split: one of `splits`.
            way: classes an episode.
            shot: support images a class.
            query: query images a class.
            rotations: whether each class counts four times, rotated by quarter turns.
            seed: which episodes.

        Raises:
            DataError: as `load`, or the split has too few classes or images.
        """
        spec = EpisodeSpec(way=way, shot=shot, query=query)
        return EpisodeSampler(self.load(split), spec, seed=seed, rotations=rotations)

    def load(self, split: str, *, verify: bool = True) -> ImageSplit:
        """Read one split into memory.

        Args:
            split: one of `splits`.
            verify: compare the pixels with their SHA-256 (a second for 1 GB); without it, only
                with the checksums of their chunks.

        Raises:
            DataError: there is no such split, it is larger than `MAX_SPLIT_BYTES`, or the file is
                damaged or not what it says.
        """
        info = self._info(split)
        with open_hdf5(self.path) as root:
            images, offsets = _check_split(root, split, info, self.manifest.dtype)
            size = images.dtype.itemsize * prod(images.shape)
            MAX_SPLIT_BYTES.check(split, size, "prepare a smaller store")
            return _load(root, images, offsets, split, info, verify=verify)

    def class_sizes(self, split: str) -> tuple[int, ...]:
        """Number of images of each class of a split, without reading the images.

        Raises:
            DataError: as `load`.
        """
        info = self._info(split)
        with open_hdf5(self.path) as root:
            _, offsets = _check_split(root, split, info, self.manifest.dtype)
            return tuple(np.diff(_ends(root, offsets, split, info)).tolist())

    def _info(self, split: str) -> SplitInfo:
        info = self.manifest.splits.get(split)
        if info is None:
            have = ", ".join(self.splits)
            raise DataError(f"{self.path}: expected one of its splits ({have}), found {split!r}")
        return info


def open_store(path: str | Path) -> Store:
    """Read the manifest of a store and check that its splits have the shapes it states.

    Raises:
        DataError: not a store, damaged, or of another schema.
    """
    path = Path(path)
    with open_hdf5(path) as root:
        manifest = _read_manifest(root)
        for split, info in manifest.splits.items():
            _check_split(root, split, info, manifest.dtype)
    return Store(path=path, manifest=manifest)


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of a store; see `open_store`."""
    return open_store(path).manifest


def verify_store(path: str | Path) -> Manifest:
    """Check all of a store: its sidecar, its structure, and the pixels of every split.

    One split is in memory at a time.

    Raises:
        DataError: something is missing, different or damaged.
    """
    store = open_store(path)
    expected, found = read_sidecar(store.path), file_sha256(store.path)
    if found != expected:
        msg = f"expected SHA-256 {expected[:12]}…, found {found[:12]}…: damaged or replaced"
        raise DataError(f"{store.path}: {msg}: prepare the store again")
    for split in store.splits:
        store.load(split)
    return store.manifest


def _read_manifest(root: Group) -> Manifest:
    if "manifest" not in root.members:
        raise DataError("expected a data set 'manifest': HDF5, but not a store of this package")
    found = dataset(root, "manifest", np.uint8, 1)
    if found.shape[0] > _MANIFEST_BYTES:
        raise DataError(f"manifest: more than {_MANIFEST_BYTES} bytes: not a store")
    manifest = parse_manifest(read_array(root.file, found).tobytes())
    names(root, {"manifest", *manifest.splits})
    return manifest


def _check_split(
    root: Group, split: str, info: SplitInfo, dtype: type[np.generic]
) -> tuple[Dataset, Dataset]:
    below = group(root, split)
    names(below, {"images", "class_offsets"})
    images = dataset(below, "images", dtype, 4)
    offsets = dataset(below, "class_offsets", np.int64, 1)
    _expect(f"{split}/images: shape", (info.images, *info.image_shape), images.shape)
    _expect(f"{split}/class_offsets: shape", (len(info.class_names) + 1,), offsets.shape)
    return images, offsets


def _ends(root: Group, offsets: Dataset, split: str, info: SplitInfo) -> NDArray[np.int64]:
    """Where each class begins, and the last one ends."""
    ends = cast("NDArray[np.int64]", read_array(root.file, offsets))
    _expect(f"{split}/class_offsets: ends", (0, info.images), (int(ends[0]), int(ends[-1])))
    # Compared pairwise: a difference of two hostile numbers could overflow.
    _expect(f"{split}/class_offsets: rising", True, bool((ends[1:] > ends[:-1]).all()))
    return ends


def _load(
    root: Group, images: Dataset, offsets: Dataset, split: str, info: SplitInfo, *, verify: bool
) -> ImageSplit:
    ends = _ends(root, offsets, split, info)
    pixels = cast("Images", read_array(root.file, images, checked=not verify))
    if verify:
        _expect(f"{split}/images: SHA-256", info.sha256, sha256(pixels.data).hexdigest())
    if pixels.dtype == np.float32:
        _expect(f"{split}/images: all finite", True, bool(np.isfinite(pixels).all()))
    return ImageSplit(
        name=split,
        images=pixels,
        offsets=ends,
        class_names=info.class_names,
        sha256=info.sha256,
    )


def _expect(what: str, expected: object, found: object) -> None:
    if found != expected:
        msg = f"{what}: expected {expected}, found {found}: damaged, prepare the store again"
        raise DataError(msg)
