"""Standard few-shot benchmarks: a data set that torchvision or a folder has, and published splits.

The splits are in `class_splits`, with who published them.
"""

from dataclasses import replace
from pathlib import Path

from bilevel_data.class_splits import PUBLISHED, PublishedSplits
from bilevel_data.dataset import SourceData
from bilevel_data.errors import DataError
from bilevel_data.files.picture_folders import directories
from bilevel_data.files.regular_file import reading
from bilevel_data.sources.folder import folder
from bilevel_data.sources.torchvision.source import torchvision

__all__ = ["TIERED", "benchmark"]

TIERED = "tiered-imagenet"
_SIDE = 84
_DEEPEST = 3
# Which data set of torchvision holds the pictures, and the size of the images.
_TORCHVISION = {
    "cifar-fs": ("CIFAR100", 32),
    "fc100": ("CIFAR100", 32),
    "aircraft": ("FGVCAircraft", _SIDE),
    "flowers": ("Flowers102", _SIDE),
    "textures": ("DTD", _SIDE),
}


def benchmark(
    *, name: str, path: Path | None, download: bool = False, size: int | None = None
) -> SourceData:
    """A benchmark's pictures, its classes dealt out as they were published.

    Args:
        name: a key of `PUBLISHED`, or `"tiered-imagenet"`.
        path: a folder with a directory a class, at any depth; or with directories `train`,
            `val` and `test` of them, which then decide; or torchvision's root.
        download: let torchvision fetch its files to `path`.
        size: height and width in pixels; left out, 32 for CIFAR, 84 for the others.

    Raises:
        DataError: nothing that looks like the data set is there, a class is not one of its, or a
            split is missing.
    """
    if path is None or not (download or path.is_dir()):
        raise DataError(
            f"{name}: expected the folder or the archive of its pictures, found {path}: give its "
            "path (--source)"
        )
    if name == TIERED:
        return _tiered(path, size or _SIDE)
    splits = PUBLISHED[name]
    torchvision_name, usual = _TORCHVISION.get(name, ("", _SIDE))
    classes = None if download else _find_classes(path, splits)
    if classes is not None:
        found = folder(path=classes, size=size or usual, channels=3, splits=name)
    elif torchvision_name:
        found = torchvision(
            name=torchvision_name,
            path=path,
            download=download,
            size=size or usual,
            channels=3,
            splits=name,
        )
    else:
        raise DataError(f"{path}: expected {splits.title}, a directory a class, found none of them")
    return replace(found, name=name, source=f"{splits.title}, {found.source}; {splits.source}")


def _tiered(path: Path, size: int) -> SourceData:
    """Its 608 classes are listed nowhere but in its own directories or files."""
    found = folder(path=path, size=size, channels=3, given_splits=True)
    if {split.name for split in found.splits} != {"train", "val", "test"}:
        raise DataError(
            f"{path}: expected train, val and test, a directory a class in each, as tieredImageNet "
            "is published: give the folder that holds the three"
        )
    return replace(
        found,
        name=TIERED,
        source="tieredImageNet (Ren et al., 2018), classes as in its directories",
    )


def _find_classes(path: Path, splits: PublishedSplits) -> Path | None:
    """The folder whose directories are classes, or splits of them; None where there is none."""
    with reading(path):
        places = [path]
        for _ in range(_DEEPEST):
            for place in places:
                names = [below.name for below in directories(place)]
                known = sum(splits.split_of_class(name) is not None for name in names)
                if names and 2 * known >= len(names):
                    return place.parent if _is_split(place) else place
            places = [below for place in places for below in directories(place)]
    return None


def _is_split(place: Path) -> bool:
    return place.name.lower() in ("train", "val", "test")
