"""mini-ImageNet: 100 classes of 600 photographs, 84×84, split by class into 64/16/20.

References:
    Matching networks for one shot learning (Vinyals et al., 2016), section 4.1.2: the data set.
    Optimization as a model for few-shot learning (Ravi & Larochelle, 2017), section 5.1: the
        classes and the csv files that list them.
    Model-agnostic meta-learning for fast adaptation of deep networks (Finn, Abbeel & Levine,
        2017): the code published with it resizes whole pictures with Lanczos, as is done here.
"""

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from io import StringIO
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from bilevel_data.dataset import SPLIT_NAMES, Images, Lazy, SourceData, SourceSplit
from bilevel_data.errors import DataError
from bilevel_data.files.file_tree import FileTree, open_tree
from bilevel_data.files.limits import MAX_ENTRIES
from bilevel_data.files.regular_file import reading
from bilevel_data.preprocessing import Preprocessing
from bilevel_data.sources.decode import read_pictures
from bilevel_data.splits import split_named

__all__ = ["mini_imagenet"]

_SIDE = 84
_PREPROCESSING = Preprocessing(size=(_SIDE, _SIDE), channels=3, crop=False)
_FORMATS, _SUFFIXES = ("JPEG", "PNG"), (".jpg", ".jpeg", ".png")
# What lists call their columns, ours first.
_FILE_COLUMNS, _LABEL_COLUMNS = ("filename", "file", "image"), ("label", "class", "wnid")
_DELIMITERS = ",;\t"
_PICKLES = (".pkl", ".pickle")
_MAX_CSV_BYTES, _MAX_PICTURE_BYTES = 8 << 20, 32 << 20

Classes: TypeAlias = Mapping[str, tuple[str, ...]]


def mini_imagenet(*, path: Path | None) -> SourceData:
    """mini-ImageNet as 84×84 colour images, from its csv files and pictures.

    A csv file lists the pictures of a split in the columns filename and label, with whatever
    other columns beside them. Each picture is looked for in a directory `images` or in one named
    as its label, at any depth. Without any list, directories called `train`, `val` and
    `test`, in any capitals, hold a directory a label. Pictures of 84×84 keep every pixel; others
    are resized whole, so that their proportions change.

    Args:
        path: a zip, or a folder, with at least one of `train.csv`, `val.csv` and
            `test.csv`, and the pictures that they list; or with directories of those names.

    Raises:
        DataError: no or twice the same csv file, a malformed one, a label in two splits, a
            picture that is listed and missing, or there and not listed. A picture that cannot
            be read is refused when its class is asked for.
    """
    with reading(path or Path()):
        if path is None or not path.exists():
            msg = "mini-imagenet: expected its zip, or the folder of its csv files and pictures"
            raise DataError(f"{msg}, found {path}: give its path (--source)")
    tree = open_tree(path, max_files=MAX_ENTRIES.get())
    lists = _read_lists(tree)
    found = lists or _of_directories(tree)
    _check_labels(tree, found)
    located = _locate(tree, lists) if lists else found
    return SourceData(
        name="mini-imagenet",
        licence="research and education only, as ImageNet's terms of access say",
        source="mini-ImageNet (Vinyals et al., 2016), classes of Ravi & Larochelle (2017): "
        f"{', '.join(f'{split}.csv' for split in lists) or 'directories'}",
        preprocessing=_PREPROCESSING,
        rotations_are_classes=False,
        splits=tuple(_split(tree, *found) for found in located.items()),
    )


def _read_lists(tree: FileTree) -> dict[str, Classes]:
    lists = {}
    for split in SPLIT_NAMES:
        found = [name for name in tree.names if name.rpartition("/")[2] == f"{split}.csv"]
        if len(found) > 1:
            raise DataError(f"{tree.path}: expected one {split}.csv, found {found[:3]}: keep one")
        if found:
            lists[split] = _read_list(tree, found[0])
    return lists


def _of_directories(tree: FileTree) -> dict[str, Classes]:
    """The pictures of each split and label, where directories say which: `train/n01532829/x.jpg`.

    Raises:
        DataError: there are none.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in tree.names:
        parts = name.split("/")
        split = split_named(parts[-3]) if len(parts) > 2 else None
        if split is not None and name.lower().endswith(_SUFFIXES):
            found.setdefault(split, {}).setdefault(parts[-2], []).append(name)
    if not found:
        expected = ", ".join(f"{split}.csv" for split in SPLIT_NAMES)
        packed = [name for name in tree.names if name.lower().endswith(_PICKLES)]
        instead = (
            f"{packed[0]!r} is a pickle, which can run any code and is never read: bring the "
            "pictures, and add"
            if packed
            else "add"
        )
        raise DataError(
            f"{tree.path}: expected at least one of {expected} in it, or directories train, val "
            f"and test, found none: {instead} the lists of Ravi & Larochelle"
        )
    return {
        split: {label: tuple(found[split][label]) for label in sorted(found[split])}
        for split in SPLIT_NAMES
        if split in found
    }


def _read_list(tree: FileTree, name: str) -> Classes:
    where = f"{tree.path}: {name}"
    (content,) = tree.read([name], max_bytes=_MAX_CSV_BYTES)
    classes: dict[str, set[str]] = {}
    try:
        text = content.decode("utf-8-sig")
        first = text.partition("\n")[0]
        mark = max(_DELIMITERS, key=first.count)
        rows = csv.reader(
            StringIO(text, newline=""), delimiter=mark, skipinitialspace=True, strict=True
        )
        header = next(rows, [])
        columns = _columns(where, header)
        for row in filter(None, rows):
            file, label = _check_row(f"{where}, line {rows.line_num}", row, columns, len(header))
            if file in classes.setdefault(label, set()):
                raise DataError(
                    f"{where}, line {rows.line_num}: {file!r} is listed twice: remove a line"
                )
            classes[label].add(file)
    except (UnicodeDecodeError, csv.Error) as err:
        raise DataError(
            f"{where}: expected csv in UTF-8, cannot read it ({err}): save it so"
        ) from None
    if not classes:
        raise DataError(f"{where}: expected pictures, found an empty list: remove it or fill it")
    return {label: tuple(sorted(classes[label])) for label in sorted(classes)}


def _columns(where: str, header: list[str]) -> tuple[int, int]:
    """The places of the file's name and of the label in a row."""
    names = [name.strip().lower() for name in header]
    places = []
    for known in (_FILE_COLUMNS, _LABEL_COLUMNS):
        found = [names.index(name) for name in known if name in names]
        if not found:
            raise DataError(
                f"{where}: expected the columns filename,label, found {header}"[:300]
                + ": name them so"
            )
        places.append(found[0])
    return places[0], places[1]


def _check_row(
    where: str, row: list[str], columns: tuple[int, int], length: int
) -> tuple[str, str]:
    cells = [row[place].strip() if len(row) == length else "" for place in columns]
    good = all(text and text.isprintable() for text in cells)
    if not good or not cells[0].lower().endswith(_SUFFIXES):
        expected = f"a file ({' '.join(_SUFFIXES)}) and a label"
        raise DataError(f"{where}: expected {expected}, found {ascii(row)[:100]}: correct it")
    return cells[0], cells[1]


def _check_labels(tree: FileTree, lists: Mapping[str, Classes]) -> None:
    owner: dict[str, str] = {}
    for split, classes in lists.items():
        for label in classes:
            first = owner.setdefault(label, split)
            if first != split:
                msg = f"{tree.path}: label {label!r} is in {first} and in {split}"
                raise DataError(f"{msg}, but splits hold different classes: remove it from one")


def _locate(tree: FileTree, lists: Mapping[str, Classes]) -> dict[str, Classes]:
    """The lists with the name in the tree of each picture in place of its file name."""
    pictures = _pictures(tree)
    located: dict[str, Classes] = {}
    seen: set[str] = set()
    for split, classes in lists.items():
        places, missing = {}, []
        for label, files in classes.items():
            found = [pictures.get(("images", f)) or pictures.get((label, f)) for f in files]
            missing += [f"{label}/{f}" for f, name in zip(files, found, strict=True) if not name]
            places[label] = tuple(name for name in found if name)
        if missing:
            raise DataError(
                f"{tree.path}: {split}.csv lists {len(missing)} pictures that are neither in "
                f"images/ nor in a directory of their label, such as {missing[0]!r}: add them"
            )
        for name in chain.from_iterable(places.values()):
            if name in seen:
                raise DataError(f"{tree.path}: {name!r} is listed under two labels: keep one")
            seen.add(name)
        located[split] = places
    _check_listed(tree, sorted(set(pictures.values()) - seen), lists)
    return located


def _pictures(tree: FileTree) -> dict[tuple[str, str], str]:
    """Names in the tree by directory (without what is above it) and file name."""
    pictures: dict[tuple[str, str], str] = {}
    for name in tree.names:
        if name.lower().endswith(_SUFFIXES):
            above, _, file = name.rpartition("/")
            other = pictures.setdefault((above.rpartition("/")[2], file), name)
            if other != name:
                msg = f"{tree.path}: expected a picture once, found {other!r} and {name!r}"
                raise DataError(f"{msg}: remove one")
    return pictures


def _check_listed(tree: FileTree, left: list[str], lists: Mapping[str, Classes]) -> None:
    if left:
        have = ", ".join(f"{split}.csv" for split in lists)
        absent = [f"{split}.csv" for split in SPLIT_NAMES if split not in lists]
        remedy = f"add {' or '.join(absent)}, or remove them" if absent else "remove them"
        raise DataError(
            f"{tree.path}: expected every picture in {have}, found {len(left)} that are in none, "
            f"such as {left[0]!r}: {remedy}"
        )


def _split(tree: FileTree, name: str, classes: Classes) -> SourceSplit:
    return SourceSplit(
        name=name,
        class_names=tuple(classes),
        class_sizes=tuple(len(names) for names in classes.values()),
        image_shape=(_SIDE, _SIDE, 3),
        images=Lazy(make=partial(_images, tree, classes)),
    )


def _images(tree: FileTree, classes: Classes) -> Iterator[Images]:
    names = list(chain.from_iterable(classes.values()))
    contents = tree.read(names, max_bytes=_MAX_PICTURE_BYTES)
    labels = (f"{tree.path}: {name}" for name in names)
    files = zip(labels, contents, strict=True)
    pictures = read_pictures(files, _PREPROCESSING.apply, channels=3, formats=_FORMATS)
    for members in classes.values():
        yield np.stack(list(islice(pictures, len(members))))
