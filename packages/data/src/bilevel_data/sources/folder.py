"""The user's own pictures: a directory a class."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from bilevel_data.dataset import SPLIT_NAMES, Images, Lazy, SourceData, SourceSplit
from bilevel_data.errors import DataError
from bilevel_data.files.limits import MAX_ENTRIES, MAX_PICTURE_BYTES
from bilevel_data.files.regular_file import read_plain, reading
from bilevel_data.sources.decode import SUFFIXES, centre_square, check_shape, read_picture
from bilevel_data.splits import by_fraction

__all__ = ["folder"]

_LEAST = 2  # one image for the support set, another for the query
_REMEDY = "replace or remove it"
# What file managers leave behind.
_LITTER = {"thumbs.db", "desktop.ini"}

Classes = Mapping[str, tuple[Path, ...]]


def folder(*, path: Path | None, size: int = 84, channels: int = 3, seed: int = 0) -> SourceData:
    """Pictures in ``path/class/*`` or in ``path/{train,val,test}/class/*``.

    Each is cropped to the largest square in its middle and resized with Lanczos. Classes that
    are not in split directories are dealt out 64/16/20 by `by_fraction`.

    Args:
        path: The folder.
        size: Height and width of the images in pixels, 1 to 1024.
        channels: 1 for grey, 3 for colour.
        seed: Deals the classes out otherwise.

    Raises:
        DataError: A wrong option, an empty folder, a class with fewer than two pictures, a file
            that is not a picture, or split directories beside class directories. A picture that
            cannot be read is refused when its class is asked for.
    """
    check_shape("folder", size, channels)
    with reading(path or Path()):
        if path is None or not path.is_dir():
            msg = f"folder: expected a folder with a directory a class, found {path}"
            raise DataError(f"{msg}: give its path (--source)")
        splits = _find(path, seed)
    return SourceData(
        name="folder",
        licence="unknown: that of the pictures",
        source="pictures in a local folder",
        preprocessing=f"centre square, Lanczos to {size}×{size}, {channels} channel(s)",
        rotations_are_classes=False,
        splits=tuple(_split(name, found, size, channels) for name, found in splits.items()),
    )


def _find(path: Path, seed: int) -> dict[str, Classes]:
    tops = _directories(path)
    given = [top.name for top in tops if top.name in SPLIT_NAMES]
    if given and len(given) < len(tops):
        others = sorted(top.name for top in tops if top.name not in SPLIT_NAMES)
        msg = f"{path}: has split directories ({', '.join(given)}) beside others ({others[0]})"
        raise DataError(f"{msg}: move or rename them")
    if given:
        return {name: _classes(path / name) for name in SPLIT_NAMES if name in given}
    classes = _classes(path)
    splits = by_fraction(tuple(classes), seed=seed)
    return {name: {c: classes[c] for c in members} for name, members in splits.items()}


def _classes(path: Path) -> Classes:
    found: dict[str, tuple[Path, ...]] = {}
    count = 0
    for top in _directories(path):
        if not top.name.isprintable():  # as one that is not UTF-8
            raise DataError(f"{path}: {top.name!a}: not a name that can be printed: rename it")
        found[top.name] = _pictures(top)
        count += len(found[top.name])
        MAX_ENTRIES.check(str(path), count, "give a smaller folder")
    if not found:
        raise DataError(f"{path}: expected a directory a class, found none: add them")
    return found


def _directories(path: Path) -> list[Path]:
    entries = (entry for entry in path.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in entries if entry.is_dir())


def _pictures(path: Path) -> tuple[Path, ...]:
    files = [
        entry
        for entry in sorted(path.iterdir())
        if not entry.name.startswith(".") and entry.name.lower() not in _LITTER
    ]
    for file in files:
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            expected = " ".join(SUFFIXES)
            raise DataError(f"{file}: expected pictures only ({expected}): convert or remove it")
    if len(files) < _LEAST:
        msg = f"{path}: expected at least {_LEAST} pictures in a class, found {len(files)}"
        raise DataError(f"{msg}: add some or remove the directory")
    return tuple(files)


def _split(name: str, classes: Classes, size: int, channels: int) -> SourceSplit:
    return SourceSplit(
        name=name,
        class_names=tuple(classes),
        class_sizes=tuple(len(files) for files in classes.values()),
        image_shape=(size, size, channels),
        images=Lazy(make=partial(_images, classes, size, channels)),
    )


def _images(classes: Classes, size: int, channels: int) -> Iterator[Images]:
    for files in classes.values():
        yield np.stack([_image(file, size, channels) for file in files])


def _image(file: Path, size: int, channels: int) -> Images:
    try:
        content = read_plain(file, MAX_PICTURE_BYTES, what="a picture", remedy=_REMEDY)
    except FileNotFoundError:
        raise DataError(f"{file}: cannot read this picture (it has gone): restore it") from None
    picture = centre_square(read_picture(content, str(file), channels=channels), size)
    return np.asarray(picture, dtype=np.uint8).reshape(size, size, channels)
