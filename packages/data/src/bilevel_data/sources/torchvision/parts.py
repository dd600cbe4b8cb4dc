"""A labelled torchvision data set as pictures with class names, whatever it calls its parts."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, final

from PIL import Image

from bilevel_data.errors import DataError
from bilevel_data.sources.torchvision.items import attempt, labels_of, names_of, read_item
from bilevel_data.sources.torchvision.library import import_datasets

__all__ = ["Item", "Parts", "open_parts"]

Item: TypeAlias = tuple[int, int]

# Values of the argument `split` that together are a whole data set, each picture once.
_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Country211": ("train", "valid", "test"),
        "DTD": ("train", "val", "test"),
        "EMNIST": ("balanced",),
        "FER2013": ("train", "test"),
        "FGVCAircraft": ("trainval", "test"),
        "Flowers102": ("train", "val", "test"),
        "Food101": ("train", "test"),
        "GTSRB": ("train", "test"),
        "ImageNet": ("train", "val"),
        "Imagenette": ("train", "val"),
        "OxfordIIITPet": ("trainval", "test"),
        "PCAM": ("train", "val", "test"),
        "Places365": ("train-standard", "val"),
        "RenderedSST2": ("train", "val", "test"),
        "STL10": ("train", "test"),
        "StanfordCars": ("train", "test"),
        "SVHN": ("train", "test"),
    }
)


@final
@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a data set, such as its training and test pictures, taken together.

    Attributes:
        name: name of the class in `torchvision.datasets`.
        parts: the data sets, one a part.
        classes: `(part, index)` of the pictures of each class.
        labels: the number of each class.
    """

    name: str
    parts: tuple[Any, ...]
    classes: Mapping[str, tuple[Item, ...]]
    labels: Mapping[str, int]

    def picture(self, item: Item, label: int) -> Image.Image:
        """One picture.

        Raises:
            DataError: it cannot be read, is no picture, or has another label.
        """
        where = f"torchvision:{self.name}: item {item[1]} of part {item[0] + 1}"
        picture, found = read_item(where, self.parts[item[0]], item[1])
        if not isinstance(picture, Image.Image):
            kind = type(picture).__name__
            raise DataError(f"{where}: expected a picture, found {kind}: choose another data set")
        if found != label:
            raise DataError(f"{where}: expected label {label}, found {found}: fetch it again")
        return picture


def open_parts(name: str, path: Path | None, *, download: bool, part: str | None) -> Parts:
    """Open all of a data set.

    Args:
        name: a class of `torchvision.datasets`, such as `"CIFAR100"`.
        path: its argument `root`.
        download: its argument `download`.
        part: its argument `split`, to have this part alone.

    Raises:
        DataError: no data set of this name, wrong arguments, or torchvision cannot open it or
            gives other labels than one whole number a picture.
    """
    make = _find(name)
    known = _parameters(make)
    arguments = _arguments(name, known, path, download=download)
    choices = _choices(name, known, part)
    if "train" in known:
        choices = [{**choice, "train": train} for choice in choices for train in (True, False)]
    parts = tuple(
        attempt(f"torchvision:{name}: cannot open it", partial(make, **arguments, **choice))
        for choice in choices
    )
    labels = [labels_of(name, data) for data in parts]
    numbers = sorted(set().union(*labels))
    names = dict(zip(numbers, names_of(name, parts, numbers), strict=True))
    classes: dict[str, list[Item]] = {text: [] for text in names.values()}
    for p, found in enumerate(labels):
        for i, label in enumerate(found):
            classes[names[label]].append((p, i))
    return Parts(
        name=name,
        parts=parts,
        classes={text: tuple(items) for text, items in classes.items()},
        labels={text: number for number, text in names.items()},
    )


def _find(name: str) -> Callable[..., Any]:
    datasets = import_datasets()
    found = getattr(datasets, name) if name in datasets.__all__ else None
    if not (inspect.isclass(found) and issubclass(found, datasets.VisionDataset)):
        msg = f"torchvision: expected a data set of torchvision.datasets, found {name!r}"
        raise DataError(f"{msg}: give such as torchvision:CIFAR100")
    return found


def _parameters(make: Any) -> set[str]:
    """Names of the arguments that a class takes, those that it hands to its parent included."""
    known: set[str] = set()
    for kind in make.__mro__:
        if "__init__" in vars(kind):
            found = inspect.signature(kind.__init__).parameters.values()
            known |= {p.name for p in found}
            if all(p.kind != p.VAR_KEYWORD for p in found):
                break
    return known


def _arguments(
    name: str, known: set[str], path: Path | None, *, download: bool
) -> dict[str, object]:
    where = f"torchvision:{name}"
    if download and "download" not in known:
        raise DataError(f"{where}: torchvision cannot download it: leave download out (--download)")
    if "root" not in known:
        if path is not None:
            raise DataError(
                f"{where}: it reads no files: leave out the path {str(path)!r} (--source)"
            )
        return {}
    if path is None or not (download or path.is_dir()):
        msg = f"{where}: expected the folder that is torchvision's root, found {path}"
        raise DataError(f"{msg}: give its path (--source)")
    # Said either way, as one data set downloads unless it is told not to.
    return {"root": str(path), **({"download": download} if "download" in known else {})}


def _choices(name: str, known: set[str], part: str | None) -> list[dict[str, object]]:
    if "split" not in known:
        if part is not None:
            raise DataError(f"torchvision:{name}: part: it has no parts to choose: leave it out")
        return [{}]
    parts = _PARTS.get(name, ()) if part is None else (part,)
    if not parts:
        msg = f"torchvision:{name}: expected the part to take (torchvision's split), found none"
        raise DataError(f"{msg}: give the option part (--option part=NAME)")
    return [{"split": value} for value in parts]
