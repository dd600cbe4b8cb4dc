"""Pictures that a person brings, made into images as the run's data set was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bilevel_apps.errors import InputError
from bilevel_apps.runs.load import TrainedRun
from bilevel_data import DataError
from bilevel_data.files.limits import MAX_ENTRIES, MAX_PICTURE_BYTES
from bilevel_data.files.regular_file import read_plain
from bilevel_data.sources.decode import SUFFIXES, centre_square, read_picture

__all__ = ["Preparation", "preparation_of", "prepared_as", "query_files", "support_files"]

# What a data set's `preprocessing` says where dark ink became bright, and where pictures were
# resized with other proportions; else they were cropped to the square in their middle.
INVERTED, WHOLE = "ink 255", "resized whole"
REMEDY = "give another, or make it smaller"
# What file managers leave behind.
LITTER = ("thumbs.db", "desktop.ini")

Pixels = NDArray[np.uint8]


@final
@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a picture becomes an image.

    Upright; see-through parts become white; resized with Lanczos, unless it has the size already.

    Attributes:
        size: height and width of an image.
        channels: 1 for grey, 3 for colour.
        inverted: dark ink becomes bright, as in Omniglot's images.
        whole: all of the picture is resized, as in mini-ImageNet's; otherwise the largest square in
            its middle.
    """

    size: int
    channels: int
    inverted: bool
    whole: bool

    def image(self, file: Path) -> Pixels:
        """Return a picture as (size, size, channels).

        Raises:
            InputError: there is none.
            bilevel_data.DataError: it cannot be read, is not a picture, damaged, or too large.
        """
        try:
            content = read_plain(file, MAX_PICTURE_BYTES, what="a picture", remedy=REMEDY)
        except FileNotFoundError:
            raise InputError(f"{file}: no such picture: {REMEDY}") from None
        picture = read_picture(content, str(file), channels=self.channels)
        if self.whole:
            picture = picture.resize((self.size, self.size), Image.Resampling.LANCZOS)
        else:
            picture = centre_square(picture, self.size)
        pixels = np.asarray(picture, dtype=np.uint8).reshape(self.size, self.size, self.channels)
        return 255 - pixels if self.inverted else pixels

    def images(self, files: Sequence[Path]) -> Pixels:
        """Return pictures as (n, size, size, channels)."""
        return np.stack([self.image(file) for file in files])


def preparation_of(run: TrainedRun, data: Path | None) -> Preparation:
    """Return how the images of a run's data set were made.

    The checkpoint says so; for one that does not, the store does.

    Raises:
        InputError: the images are neither grey nor colour, or nothing says how they were made.
    """
    height, _, channels = run.image_shape
    if channels not in (1, 3):
        raise InputError(
            f"{run.path}: was trained on images of {channels} channels, but pictures have 1 (grey) "
            "or 3 (colour): choose another run"
        )
    said = _said_by_store(run, data) if run.preprocessing is None else run.preprocessing
    return prepared_as(said, size=height, channels=channels)


def prepared_as(said: str, *, size: int, channels: int) -> Preparation:
    """Return what a data set's `preprocessing` says."""
    return Preparation(size=size, channels=channels, inverted=INVERTED in said, whole=WHOLE in said)


def _said_by_store(run: TrainedRun, data: Path | None) -> str:
    try:
        store = run.store(data)
    except DataError as error:
        raise InputError(
            f"{error}; the checkpoint does not say how its images were made: name a store made as "
            "its own with --data"
        ) from None
    shapes = {info.image_shape for info in store.manifest.splits.values()}
    if run.image_shape not in shapes:
        raise InputError(
            f"{store.path}: images of (height, width, channels) {min(shapes)}, but the run was "
            f"trained on {run.image_shape}: give a store made the same way with --data"
        )
    return store.manifest.preprocessing


def support_files(folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """Return the pictures of each class of `folder/CLASS/*`, sorted by name.

    Raises:
        InputError: no folder, fewer than two classes, an empty one, or what is not a picture.
    """
    tops = [entry for entry in _entries(folder) if entry.is_dir()]
    if len(tops) < 2:
        found = f"one, {tops[0].name!r}" if tops else "none"
        raise InputError(
            f"{folder}: expected a directory a class, two or more, found {found}: add the others"
        )
    return {top.name: _pictures(top) for top in tops}


def query_files(path: Path) -> tuple[Path, ...]:
    """Return a file by itself, or the pictures of a folder, sorted by name.

    Raises:
        InputError: there is nothing, or a folder without pictures or with other things.
    """
    try:
        if path.is_dir():
            return _pictures(path)
        if path.exists():
            return (path,)
    except OSError as error:  # such as a name that is too long
        raise _unread(path, "cannot be read", error) from None
    raise InputError(f"{path}: no such picture or folder: name one that is there")


def _pictures(folder: Path) -> tuple[Path, ...]:
    files = [entry for entry in _entries(folder) if entry.name.lower() not in LITTER]
    for file in files:
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{file}: expected pictures only ({' '.join(SUFFIXES)}): convert or remove it"
            )
    if not files:
        raise InputError(f"{folder}: no pictures: add some, or remove the directory")
    return tuple(files)


def _entries(folder: Path) -> list[Path]:
    try:
        found = list(islice(folder.iterdir(), MAX_ENTRIES.get() + 1))
    except OSError as error:
        raise _unread(folder, "cannot read this folder", error) from None
    MAX_ENTRIES.check(str(folder), len(found), "give a smaller folder")
    return [entry for entry in sorted(found) if not entry.name.startswith(".")]


def _unread(path: Path, what: str, error: OSError) -> InputError:
    return InputError(f"{path}: {what} ({error.strerror}): give another, or make it readable")
