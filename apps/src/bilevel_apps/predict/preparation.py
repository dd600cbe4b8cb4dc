"""Pictures that a person brings, made into images as the run's data set was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bilevel_apps.errors import InputError
from bilevel_apps.runs.load import TrainedRun
from bilevel_data import DataError, Ink, Preprocessing, common_ink
from bilevel_data.files.limits import MAX_PICTURE_BYTES
from bilevel_data.files.picture_folders import SUFFIXES, directories, pictures_and_strays, some
from bilevel_data.files.regular_file import read_plain
from bilevel_data.sources.decode import read_picture

__all__ = [
    "INK_CHOICES",
    "Pixels",
    "fitted",
    "inked",
    "preparation_of",
    "query_files",
    "settled_ink",
    "support_files",
]

# What the pictures have; `keep` and `invert` do not look at it.
INK_CHOICES = ("auto", "bright", "dark", "keep", "invert")
REMEDY = "give another, or make it smaller"

Pixels = NDArray[np.uint8]
InkChoice: TypeAlias = Ink | Literal["auto"] | None


def preparation_of(run: TrainedRun, data: Path | None) -> Preprocessing:
    """Return how the images of a run's data set were made.

    The checkpoint says so; for one that does not, the store does.

    Raises:
        InputError: the images are neither grey nor colour, or nothing says how they were made.
    """
    run.require_pictures("bilevel-predict")
    height, width, channels = run.image_shape
    if channels not in (1, 3):
        raise InputError(
            f"{run.path}: was trained on images of {channels} channels, but pictures have 1 (grey) "
            "or 3 (colour): choose another run"
        )
    found = _of_store(run, data) if run.preprocessing is None else run.preprocessing
    return replace(found, size=(height, width), channels=channels)


def _of_store(run: TrainedRun, data: Path | None) -> Preprocessing:
    try:
        store = run.store(data)
    except DataError as error:
        raise InputError(
            f"{error}; the checkpoint does not say how its images were made: name a store made as "
            "its own with `data`"
        ) from None
    shapes = {info.image_shape for info in store.manifest.splits.values()}
    if run.image_shape not in shapes:
        raise InputError(
            f"{store.path}: images of (height, width, channels) {min(shapes)}, but the run was "
            f"trained on {run.image_shape}: give a store made the same way with `data`"
        )
    return store.manifest.preprocessing


def settled_ink(
    choice: str, preparation: Preprocessing, support: Pixels
) -> tuple[Preprocessing, InkChoice, str]:
    """Return how to prepare pictures, the ink to prepare each with, and a line that says so.

    Args:
        choice: one of `INK_CHOICES`.
        preparation: how the run's images were made.
        support: labelled pictures, as `fitted` returns them; what most of them have counts where a
            border tells nothing.

    Raises:
        InputError: another choice, or the run's images have no ink that is known.
    """
    if choice not in INK_CHOICES:
        raise InputError(f"`ink`={choice}: expected one of {', '.join(INK_CHOICES)}")
    if choice in ("keep", "invert"):
        return replace(preparation, ink=None, inverted=choice == "invert"), None, ""
    if preparation.ink is None:
        if choice != "auto":
            raise InputError(
                f"`ink`={choice}: the run's images have no ink that is known: give `ink`=keep or "
                "`ink`=invert"
            )
        return preparation, None, ""
    if choice != "auto":
        ink: Ink = "bright" if choice == "bright" else "dark"
        return preparation.with_common_ink(ink), ink, ""
    found = common_ink(support)
    return preparation.with_common_ink(found), "auto", _said(preparation, found)


def _said(preparation: Preprocessing, found: Ink | None) -> str:
    own = preparation.ink
    if found is None:
        how = "inverted" if preparation.inverted else "kept"
        return (
            f"the run's images are drawings in {own} ink, and most of these pictures do not look "
            f"like drawings: {how} as the run's were, unless a border says otherwise; --ink "
            "chooses"
        )
    done = "inverted as the run's images are" if found != own else "as the run's images have it"
    return f"{found} ink, by the borders of the pictures: {done}; --ink chooses otherwise"


def fitted(files: Sequence[Path], preparation: Preprocessing) -> Pixels:
    """Return pictures cut and resized (n, height, width, channels), their ink as it is.

    Raises:
        InputError: there is none.
        bilevel_data.DataError: one cannot be read, is not a picture, damaged, or too large.
    """
    return np.stack([preparation.fit(_decoded(file, preparation.channels)) for file in files])


def _decoded(file: Path, channels: int) -> Image.Image:
    try:
        content = read_plain(file, MAX_PICTURE_BYTES, what="a picture", remedy=REMEDY)
    except FileNotFoundError:
        raise InputError(f"{file}: no such picture: {REMEDY}") from None
    return read_picture(content, str(file), channels=channels)


def inked(images: Pixels, preparation: Preprocessing, ink: InkChoice) -> Pixels:
    """Return what `fitted` did in the ink of the run's images."""
    return np.stack([preparation.inked(image, ink) for image in images])


def support_files(folder: Path) -> tuple[Mapping[str, tuple[Path, ...]], tuple[Path, ...]]:
    """Return the pictures of each class of `folder/CLASS/*`, by name, and what is passed over.

    A folder in a folder, as archives are unpacked, is gone into.

    Raises:
        InputError: no folder, fewer than two classes, or an empty one.
    """
    tops = _tops(folder)
    if len(tops) == 1 and len(inner := _tops(tops[0])) > 1 and not _pictures(tops[0])[0]:
        tops = inner
    if len(tops) < 2:
        found = f"one, {tops[0].name!r}" if tops else "none"
        raise InputError(
            f"{folder}: expected a directory a class, two or more, found {found}: add the others"
        )
    classes: dict[str, tuple[Path, ...]] = {}
    passed_over: list[Path] = []
    for top in tops:
        classes[top.name], strays = _pictures(top)
        passed_over += strays
        if not classes[top.name]:
            raise InputError(f"{top}: no pictures: add some, or remove the directory")
    return classes, tuple(passed_over)


def query_files(path: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return a file by itself, or the pictures of a folder by name, and what is passed over.

    Raises:
        InputError: there is nothing, or a folder without pictures.
    """
    try:
        if path.is_dir():
            pictures, strays = _pictures(path)
            if not pictures:
                expected = " ".join(SUFFIXES)
                raise InputError(f"{path}: no pictures ({expected}): add some{_beside(strays)}")
            return pictures, strays
        if path.exists():
            return (path,), ()
    except OSError as error:  # such as a name that is too long
        raise InputError(
            f"{path}: cannot be read ({error.strerror}): give another, or make it readable"
        ) from None
    raise InputError(f"{path}: no such picture or folder: name one that is there")


def _beside(strays: Sequence[Path]) -> str:
    return f", found only {some([stray.name for stray in strays])}" if strays else ""


def _tops(folder: Path) -> list[Path]:
    try:
        return directories(folder)
    except DataError as error:
        raise InputError(str(error)) from None


def _pictures(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    try:
        return pictures_and_strays(folder)
    except DataError as error:
        raise InputError(str(error)) from None
