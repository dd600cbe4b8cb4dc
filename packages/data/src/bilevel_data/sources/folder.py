"""The user's own pictures: a directory a class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image

from bilevel_data.class_splits import PUBLISHED
from bilevel_data.dataset import SPLIT_NAMES, Images, Lazy, Pixels, SourceData, SourceSplit
from bilevel_data.errors import DataError
from bilevel_data.files.limits import MAX_ENTRIES
from bilevel_data.files.picture_folders import SUFFIXES, directories, pictures_and_strays, some
from bilevel_data.files.regular_file import reading
from bilevel_data.ink import INKS, Ink, common_ink
from bilevel_data.preprocessing import Preprocessing
from bilevel_data.sources.decode import (
    check_shape,
    picture_bytes,
    picture_headers,
    read_picture,
    unreadable,
)
from bilevel_data.splits import by_fraction, from_file, split_named

__all__ = ["folder"]

_LEAST = 2  # one image for the support set, another for the query
_FEWEST_CLASSES = 3  # one a split
_USUAL_SIDE, _DEEPEST = 84, 4
_LOOKED_AT = 60  # pictures, to tell drawings from photographs
_KEEP = "keep"

Classes = Mapping[str, tuple[Path, ...]]
Splits = Mapping[str, Classes]


@final
@dataclass(frozen=True)
class _Found:
    """What a folder holds: the pictures of each class, and what is not one."""

    classes: Classes
    strays: tuple[Path, ...]


def folder(
    *,
    path: Path | None,
    size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    ink: str = _KEEP,
    skip_unreadable: bool = False,
    min_pictures: int | None = None,
    splits: str | None = None,
    given_splits: bool = False,
) -> SourceData:
    """Pictures in `path/class/*` or in `path/{train,val,test}/class/*`.

    A directory of directories, such as an archive unpacked into a folder of its own name, is gone
    into; a class that lies deeper is called by its path, as `group/class`. Classes that are not
    in split directories are dealt out 64/16/20 by `by_fraction`. Each picture is cropped to the
    largest square in its middle and resized with Lanczos.

    Args:
        path: the folder.
        size: height and width of the images in pixels, 1 to 1024; left out, the shorter side of
            the largest picture, at most 84.
        channels: 1 for grey, 3 for colour; left out, grey where every picture is.
        seed: deals the classes out otherwise.
        ink: what the images of drawings have: `"keep"` as the pictures; `"bright"` on a dark
            ground, as Omniglot's, or `"dark"`, told from the border of each picture.
        skip_unreadable: leave out what cannot be read, after a look at every picture.
        min_pictures: leave out classes with fewer pictures, ≥ 2; left out, a class with fewer than
            two is refused.
        splits: deals the classes out as published, a key of `class_splits.PUBLISHED`, or as a JSON
            file says, lists of class names by split; not where directories do.
        given_splits: refuse classes that are not in split directories.

    Raises:
        DataError: a wrong option, an empty folder, a class with fewer than two pictures, a file
            that is not a picture, or split directories beside class directories. Pictures that
            cannot be read are refused when the class of the first is asked for.
    """
    _check_options(ink, skip_unreadable, min_pictures)
    check_shape("folder", *(_USUAL_SIDE if size is None else size, channels or 1))
    with reading(path or Path()):
        if path is None or not path.is_dir():
            msg = f"folder: expected a folder with a directory a class, found {path}"
            raise DataError(f"{msg}: give its path (--source)")
        groups, found = _find(path)
    if given_splits and "" in groups:
        raise DataError(
            f"{path}: expected directories train, val and test, found classes: give the folder "
            "above, or deal the classes into such directories"
        )
    left_out: dict[str, int] = {}
    groups = _readable(path, groups, found, left_out, skip=skip_unreadable)
    groups = _large(path, groups, min_pictures, left_out)
    if tuple(groups) == ("",):
        groups = _dealt(path, groups[""], seed, splits)
    preparation, remarks = _preparation(groups, size, channels, ink)
    return SourceData(
        name="folder",
        licence="unknown: that of the pictures",
        source="pictures in a local folder",
        preprocessing=preparation,
        rotations_are_classes=False,
        splits=tuple(
            _split(name, classes, preparation, ink != _KEEP) for name, classes in groups.items()
        ),
        left_out=left_out,
        remarks=remarks,
    )


def _check_options(ink: object, skip: object, least: object) -> None:
    if ink not in (_KEEP, *INKS):
        expected = f"{_KEEP}, {' or '.join(INKS)}"
        raise DataError(f"folder: ink: expected {expected}, found {ink!r}")
    if not isinstance(skip, bool):
        raise DataError(f"folder: skip_unreadable: expected true or false, found {skip!r}")
    if least is not None and (type(least) is not int or least < _LEAST):
        raise DataError(
            f"folder: min_pictures: expected a whole number ≥ {_LEAST}, found {least!r}"
        )


def _find(path: Path) -> tuple[Splits, tuple[Path, ...]]:
    """The classes of each split, "" for all where none is given; and what is no picture."""
    top = _unwrapped(path)
    tops = directories(top)
    given: dict[str, Path] = {}
    others = []
    for below in tops:
        name = split_named(below.name)
        if name is None:
            others.append(below.name)
        elif given.setdefault(name, below) != below:
            msg = f"{top}: {given[name].name} and {below.name} are both taken for {name}"
            raise DataError(f"{msg}: rename or move one")
    if given and others:
        have = ", ".join(below.name for below in given.values())
        msg = f"{top}: has split directories ({have}) beside others ({others[0]})"
        raise DataError(f"{msg}: move or rename them")
    places = {name: given[name] for name in SPLIT_NAMES if name in given} or {"": top}
    found = {name: _classes(_unwrapped(place)) for name, place in places.items()}
    strays = tuple(stray for one in found.values() for stray in one.strays)
    return {name: one.classes for name, one in found.items()}, strays


def _unwrapped(path: Path) -> Path:
    """The folder that holds more than one directory of directories."""
    for _ in range(_DEEPEST):
        below = directories(path)
        if len(below) != 1 or not directories(below[0]) or split_named(below[0].name):
            break
        path = below[0]
    return path


def _classes(path: Path) -> _Found:
    found: dict[str, tuple[Path, ...]] = {}
    strays: list[Path] = []
    count = 0
    waiting = directories(path)[::-1]
    while waiting:
        place = waiting.pop()
        name = place.relative_to(path).as_posix()
        if not name.isprintable():  # as one that is not UTF-8
            raise DataError(f"{path}: {name!a}: not a name that can be printed: rename it")
        pictures, others = pictures_and_strays(place)
        inner = [other for other in others if other.is_dir()]
        if inner and not pictures and name.count("/") < _DEEPEST:
            waiting += inner[::-1]
            continue
        found[name] = pictures
        strays += others
        count += len(pictures)
        MAX_ENTRIES.check(str(path), count, "give a smaller folder")
    if not found:
        raise DataError(f"{path}: expected a directory a class, found none: add them")
    return _Found({name: found[name] for name in sorted(found)}, tuple(strays))


def _readable(
    path: Path, splits: Splits, strays: tuple[Path, ...], left_out: dict[str, int], *, skip: bool
) -> Splits:
    """The splits without what cannot be read, where that is wanted."""
    if not skip:
        if strays:
            raise DataError(
                f"{path}: expected pictures only ({' '.join(SUFFIXES)}) in {len(splits)} "
                f"directories of classes, found {len(strays)} that are none: {some(strays, path)}: "
                "convert or remove them, or leave them out (skip_unreadable, --skip-unreadable)"
            )
        return splits
    bad = set(unreadable(_every(splits)))
    if bad or strays:
        left_out["unreadable"] = len(bad) + len(strays)
    return {
        name: {c: tuple(f for f in files if f not in bad) for c, files in classes.items()}
        for name, classes in splits.items()
    }


def _every(splits: Splits) -> list[Path]:
    return [file for classes in splits.values() for files in classes.values() for file in files]


def _large(
    path: Path, splits: Splits, least: int | None, left_out: dict[str, int]
) -> dict[str, Classes]:
    """The splits without classes that are too small for an episode, where that is wanted."""
    smallest = _LEAST if least is None else least
    small = {
        c: len(files)
        for classes in splits.values()
        for c, files in classes.items()
        if len(files) < smallest
    }
    if small and least is None:
        first = [f"{name} ({count})" for name, count in small.items()]
        raise DataError(
            f"{path}: expected at least {_LEAST} pictures in a class, found {len(small)} with "
            f"fewer: {some(first)}: add pictures, remove the directories, or leave such classes "
            f"out (min_pictures={_LEAST}, --option min_pictures={_LEAST})"
        )
    if small:
        left_out[f"classes of fewer than {smallest} pictures"] = len(small)
    kept: dict[str, Classes] = {
        name: {c: files for c, files in classes.items() if len(files) >= smallest}
        for name, classes in splits.items()
    }
    for name, classes in kept.items():
        if not classes:
            where = f" of {name}" if name else ""
            raise DataError(
                f"{path}: no class{where} has {smallest} pictures that can be read: add some"
            )
    return kept


def _dealt(path: Path, classes: Classes, seed: int, splits: str | None) -> dict[str, Classes]:
    if splits is not None:
        if splits in PUBLISHED:
            named = PUBLISHED[splits].deal(tuple(classes))
        else:
            named = from_file(tuple(classes), Path(splits))
        return {name: {c: classes[c] for c in members} for name, members in named.items()}
    if len(classes) < _FEWEST_CLASSES:
        raise DataError(
            f"{path}: expected at least {_FEWEST_CLASSES} classes, one each to train, validate and "
            f"test, found {len(classes)} ({some(list(classes))}): to tell these apart, give the "
            "folder to bilevel-predict as --support; to train, add more classes"
        )
    dealt = by_fraction(tuple(classes), seed=seed)
    return {name: {c: classes[c] for c in members} for name, members in dealt.items()}


def _preparation(
    splits: Splits, size: int | None, channels: int | None, ink: str
) -> tuple[Preprocessing, tuple[str, ...]]:
    every = _every(splits)
    if size is None or channels is None:
        headers = [found for found in picture_headers(every) if found is not None]
        sides = [min(header.size) for header in headers]
        size = min(max(sides, default=_USUAL_SIDE), _USUAL_SIDE) if size is None else size
        grey = bool(headers) and all(header.grey for header in headers)
        channels = (1 if grey else 3) if channels is None else channels
    plain = Preprocessing(size=(size, size), channels=channels)
    looked_at = every[:: max(1, len(every) // _LOOKED_AT)][:_LOOKED_AT]
    found = common_ink(_sample(looked_at, plain))
    if ink == _KEEP:
        remark = (
            f"drawings in {found} ink, as it seems: kept as they are; ink=bright or ink=dark "
            "(--option) chooses, and bright is what Omniglot and its weights have",
        )
        return replace(plain, ink=found), remark if found else ()
    wanted: Ink = "bright" if ink == "bright" else "dark"
    inverted = found is not None and found != wanted
    what = f"drawings in {found} ink" if found else "no drawings, as it seems"
    done = "inverted" if inverted else "kept as they are"
    note = f"{what}: {done}, unless the border of a picture says otherwise"
    return replace(plain, ink=wanted, inverted=inverted), (note,)


def _sample(files: list[Path], preparation: Preprocessing) -> Iterator[Pixels]:
    for file in files:
        try:
            yield preparation.fit(_picture(file, preparation.channels))
        except DataError:  # refused with all others of its kind, when its class is made
            continue


def _split(name: str, classes: Classes, preparation: Preprocessing, by_ink: bool) -> SourceSplit:
    return SourceSplit(
        name=name,
        class_names=tuple(classes),
        class_sizes=tuple(len(files) for files in classes.values()),
        image_shape=preparation.image_shape,
        images=Lazy(make=partial(_images, classes, preparation, by_ink)),
    )


def _images(classes: Classes, preparation: Preprocessing, by_ink: bool) -> Iterator[Images]:
    groups = list(classes.values())
    for k, files in enumerate(groups):
        made = []
        for number, file in enumerate(files):
            try:
                picture = _picture(file, preparation.channels)
            except DataError as error:
                later = [*files[number + 1 :], *(f for group in groups[k + 1 :] for f in group)]
                raise _unreadable(error, file, later) from None
            made.append(preparation.apply(picture, ink="auto" if by_ink else None))
        yield np.stack(made)


def _unreadable(error: DataError, file: Path, later: list[Path]) -> DataError:
    """The error of the first picture, or of all of them once there is a second one."""
    bad = [file, *unreadable(later)]
    leave = "or leave it out (skip_unreadable, --skip-unreadable)"
    if len(bad) == 1:
        return DataError(f"{error}, {leave}")
    return DataError(
        f"{file.parent.parent}: {len(bad)} pictures cannot be read: {some(bad, file.parent.parent)}"
        f": replace or remove them, {leave.replace('it', 'them')}; the first: {error}"
    )


def _picture(file: Path, channels: int) -> Image.Image:
    return read_picture(picture_bytes(file), str(file), channels=channels)
