"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

Reference:
    Human-level concept learning through probabilistic program induction (Lake, Salakhutdinov &
    Tenenbaum, 2015). The pictures are under the MIT licence.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from bilevel_data.dataset import Images, Lazy, SourceData, SourceSplit
from bilevel_data.errors import DataError
from bilevel_data.files.download import fetch
from bilevel_data.files.file_tree import open_tree
from bilevel_data.files.picture_folders import directories
from bilevel_data.files.regular_file import reading
from bilevel_data.preprocessing import Preprocessing
from bilevel_data.sources.decode import read_picture
from bilevel_data.splits import OMNIGLOT_SPLITS

__all__ = ["OFFICIAL", "Half", "omniglot", "read_half"]

_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_SIDE, _RAW_SIDE, _MAX_FILE_BYTES = 28, 105, 1 << 16
_DEEPEST = 3
_PREPROCESSING = Preprocessing(size=(_SIDE, _SIDE), channels=1, inverted=True, ink="bright")

Drawings = Mapping[str, tuple[bytes, ...]]


@final
@dataclass(frozen=True, kw_only=True)
class Half:
    """One of the two original archives.

    Attributes:
        name: its name, without `.zip`, and that of the directory in it.
        classes: number of characters in it.
        drawings: number of drawings of each character.
        md5: published checksum of the zip.
    """

    name: str
    classes: int
    drawings: int
    md5: str


OFFICIAL = (
    Half(
        name="images_background",
        classes=964,
        drawings=20,
        md5="68d2efa1b9178cc56df9314c21c6e718",
    ),
    Half(
        name="images_evaluation",
        classes=659,
        drawings=20,
        md5="6b91aef0f799c5bb55b94e3f2daec811",
    ),
)


def omniglot(*, path: Path | None, download: bool = False, split: str = "santoro") -> SourceData:
    """Omniglot as 28×28 grey images, ink 255, paper 0.

    Args:
        path: a folder with `images_background.zip` and `images_evaluation.zip`, or with both
            unpacked. With `download` it may be left out: the user's cache is taken.
        download: fetch the zips that the folder lacks, and check them against their published
            checksums. Zips that are already there are checked by what they hold.
        split: a key of `OMNIGLOT_SPLITS`.

    Raises:
        DataError: an unknown split, a missing, damaged or incomplete archive, or a failed
            download.
    """
    divide = OMNIGLOT_SPLITS.get(split) if isinstance(split, str) else None
    if divide is None:
        have = ", ".join(OMNIGLOT_SPLITS)
        raise DataError(f"omniglot: split: expected one of {have}, found {split!r}")
    if path is None:
        if not download:
            raise DataError(
                "omniglot: expected the folder of its two zips: give its path (--source) or fetch "
                "them (--download)"
            )
        path = _cache()
    drawings: dict[str, tuple[bytes, ...]] = {}
    for half in OFFICIAL:
        archive = path / f"{half.name}.zip"
        if download and _locate(path, half) is None:
            fetch(f"{_URL}{half.name}.zip", archive, md5=half.md5)
        drawings |= read_half(path, half)
    return SourceData(
        name="omniglot",
        licence="MIT",
        source="Omniglot (Lake, Salakhutdinov & Tenenbaum, 2015), images_background and "
        "images_evaluation",
        preprocessing=replace(_PREPROCESSING, note=f"split {split}"),
        rotations_are_classes=True,
        splits=tuple(
            _split(name, {c: drawings[c] for c in classes})
            for name, classes in divide(tuple(drawings)).items()
        ),
    )


def read_half(path: Path, half: Half) -> Drawings:
    """The PNG files of one archive, or of its unpacked directory, by class and sorted by name.

    Raises:
        DataError: missing, or not the classes and drawings that `half` states.
    """
    where, files = _files(path, half)
    classes: dict[str, list[bytes]] = {}
    for name in sorted(files):
        parts = name.split("/")
        if len(parts) < 3:
            raise DataError(
                f"{where}: expected Alphabet/character/drawing.png, found {name!r}: remove it"
            )
        classes.setdefault("/".join(parts[-3:-1]), []).append(files[name])
    _check_counts(where, half, {name: len(found) for name, found in classes.items()})
    return {name: tuple(found) for name, found in classes.items()}


def _files(path: Path, half: Half) -> tuple[Path, Mapping[str, bytes]]:
    where = _locate(path, half)
    if where is None:
        msg = f"{path}: expected {half.name}.zip, or it unpacked as {half.name}/"
        raise DataError(f"{msg}: give the folder that holds it")
    # A Mac adds a file beside each, and every directory is a member of a zip too.
    tree = open_tree(where, max_files=4 * half.classes * half.drawings)
    names = [f"{half.name}/{name}" for name in tree.names if name.endswith(".png")]
    contents = tree.read(
        (name.removeprefix(f"{half.name}/") for name in names), max_bytes=_MAX_FILE_BYTES
    )
    return where, dict(zip(names, contents, strict=True))


def _locate(path: Path, half: Half) -> Path | None:
    """The archive, or the directory that it was unpacked as, here or a few directories below."""
    with reading(path):
        places = [path.parent] if path.name == half.name else [path]
        for _ in range(_DEEPEST):
            for place in places:
                directory = place / half.name
                for archive in (place / f"{half.name}.zip", directory / f"{half.name}.zip"):
                    if archive.is_file():
                        return archive
                if directory.is_dir():
                    return directory
            places = [below for place in places if place.is_dir() for below in directories(place)]
    return None


def _check_counts(where: Path, half: Half, found: Mapping[str, int]) -> None:
    if len(found) != half.classes:
        msg = f"{where}: expected {half.classes} characters, found {len(found)}"
        raise DataError(f"{msg}: {_remedy(len(found) > half.classes)}")
    for name, count in found.items():
        if count != half.drawings:
            msg = f"{where}: expected {half.drawings} drawings of {name!r}, found {count}"
            raise DataError(f"{msg}: {_remedy(count > half.drawings)}")


def _remedy(more: bool) -> str:
    return "remove what was added to it" if more else "incomplete, fetch it again"


def _cache() -> Path:
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bilevel-data/omniglot"
    )


def _split(name: str, drawings: Drawings) -> SourceSplit:
    return SourceSplit(
        name=name,
        class_names=tuple(drawings),
        class_sizes=tuple(len(found) for found in drawings.values()),
        image_shape=(_SIDE, _SIDE, 1),
        images=Lazy(make=partial(_images, drawings)),
    )


def _images(drawings: Drawings) -> Iterator[Images]:
    for name, found in drawings.items():
        yield np.stack(
            [_image(content, f"{name}, drawing {k + 1}") for k, content in enumerate(found)]
        )


def _image(content: bytes, name: str) -> Images:
    picture = read_picture(content, name, channels=1)
    if picture.size != (_RAW_SIDE, _RAW_SIDE):
        raise DataError(
            f"{name}: expected {_RAW_SIDE}×{_RAW_SIDE} pixels, found {picture.size}: fetch it again"
        )
    return _PREPROCESSING.apply(picture)
