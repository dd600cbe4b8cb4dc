"""Any labelled data set of torchvision, its classes dealt out to the splits."""

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bilevel_data.class_splits import PUBLISHED
from bilevel_data.dataset import Images, Lazy, SourceData, SourceSplit
from bilevel_data.errors import DataError
from bilevel_data.preprocessing import Preprocessing
from bilevel_data.sources.decode import check_shape, convert
from bilevel_data.sources.torchvision.parts import Parts, open_parts
from bilevel_data.splits import ClassSplits, by_fraction, from_file

__all__ = ["torchvision"]

_SHARES = (0.64, 0.16, 0.20)
_USUAL_SIDE = 84


def torchvision(
    *,
    name: str,
    path: Path | None,
    download: bool = False,
    part: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    splits: str | Path | None = None,
) -> SourceData:
    """The pictures of `torchvision.datasets.NAME`, training and test ones together.

    Each is cropped to the largest square in its middle and, unless it has the size already,
    resized with Lanczos. The classes are dealt out by `by_fraction`, or as a file says.

    Args:
        name: the class, such as `"CIFAR100"`.
        path: torchvision's `root`, the folder of its files.
        download: let torchvision fetch its files.
        part: torchvision's `split`, to take that part alone.
        size: height and width in pixels, 1 to 1024; left out, the shorter side of the first
            picture, at most 84.
        channels: 1 for grey, 3 for colour; left out, those of the first picture.
        fractions: shares of train, val and test; left out, 0.64, 0.16 and 0.20.
        seed: deals the classes out otherwise.
        splits: a published split, a key of `class_splits.PUBLISHED`; or a JSON file, an object of
            lists of class names by split, where other classes are left out.

    Raises:
        DataError: torchvision is missing or cannot open the data set, its items are not pictures
            with a whole number each, or a wrong option. A picture that cannot be read is refused
            when its class is asked for.
    """
    if splits is not None and (fractions is not None or seed != 0):
        raise DataError("torchvision: splits: the file decides: leave out fractions and seed")
    shares = _SHARES if fractions is None else _three(fractions)
    found = open_parts(name, path, download=download, part=part)
    names = tuple(found.classes)
    if splits is not None:
        dealt, how = _as_told(found, names, str(splits))
    else:
        dealt = by_fraction(names, shares, seed=seed)
        how = f"classes dealt {'/'.join(f'{100 * share:g}' for share in shares)} by seed {seed}"
    size, channels = _shape(found, dealt, size, channels)
    preparation = Preprocessing(size=(size, size), channels=channels, note=how)
    pooled = "all parts" if part is None else f"part {part}"
    return SourceData(
        name=f"torchvision:{name}",
        licence="unknown: that of the data set",
        source=f"torchvision.datasets.{name}, torchvision {version('torchvision')}, {pooled}",
        preprocessing=preparation,
        rotations_are_classes=False,
        splits=tuple(_split(found, *entry, preparation) for entry in dealt.items()),
    )


def _as_told(found: Parts, names: tuple[str, ...], splits: str) -> tuple[ClassSplits, str]:
    known = PUBLISHED.get(splits)
    if known is None:
        return from_file(names, Path(splits)), "classes as in a file"
    numbers = {name: found.labels[name] + 1 for name in names} if not known.classes else None
    return known.deal(names, numbers), f"classes of {splits}"


def _three(fractions: Sequence[float]) -> tuple[float, float, float]:
    good = isinstance(fractions, list | tuple) and len(fractions) == 3
    if not good or not all(isinstance(share, int | float) for share in fractions):
        raise DataError(f"torchvision: fractions: expected three numbers, found {fractions!r}")
    train, val, test = fractions
    return train, val, test


def _shape(
    found: Parts, dealt: ClassSplits, size: int | None, channels: int | None
) -> tuple[int, int]:
    if size is None or channels is None:
        label = next(iter(dealt.values()))[0]
        first = found.picture(found.classes[label][0], found.labels[label])
        size = min(*first.size, _USUAL_SIDE) if size is None else size
        grey = len(first.getbands()) == 1 and first.mode != "P"
        channels = (1 if grey else 3) if channels is None else channels
    check_shape(f"torchvision:{found.name}", size, channels)
    return size, channels


def _split(
    found: Parts, name: str, classes: tuple[str, ...], preparation: Preprocessing
) -> SourceSplit:
    return SourceSplit(
        name=name,
        class_names=classes,
        class_sizes=tuple(len(found.classes[label]) for label in classes),
        image_shape=preparation.image_shape,
        images=Lazy(make=partial(_images, found, classes, preparation)),
    )


def _images(found: Parts, classes: tuple[str, ...], preparation: Preprocessing) -> Iterator[Images]:
    for label in classes:
        yield np.stack([_image(found, item, label, preparation) for item in found.classes[label]])


def _image(found: Parts, item: tuple[int, int], label: str, preparation: Preprocessing) -> Images:
    where = f"torchvision:{found.name}: {label!r}, item {item[1]}"
    picture = found.picture(item, found.labels[label])
    return preparation.apply(convert(picture, where, channels=preparation.channels))
