"""What the items of a torchvision data set are labelled with."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from bilevel_data.errors import DataError

__all__ = ["attempt", "labels_of", "names_of", "read_item"]

Found = TypeVar("Found")

# Where data sets keep their labels; each is compared later with what comes with its picture.
_LABELS = ("targets", "labels", "_labels", "y")
_NAMES = ("classes", "categories")


def attempt(what: str, action: Callable[[], Found]) -> Found:
    """What an action of torchvision gives.

    Raises:
        DataError: it fails; the message begins with `what`.
    """
    try:
        return action()
    except DataError:
        raise
    except Exception as err:  # torchvision and what it reads with raise of every kind
        reason = " ".join(str(err).split())[:200] or type(err).__name__
        raise DataError(f"{what}: {reason}") from None


def labels_of(name: str, data: Any) -> list[int]:
    """The label of each item, from a list of them if there is one, or from the items.

    Raises:
        DataError: an item cannot be read or has no whole number as its label.
    """
    for key in _LABELS:
        labels = _whole(getattr(data, key, None))
        if len(labels) == len(data):
            return labels
    where = f"torchvision:{name}"
    return [read_item(f"{where}: item {i}", data, i)[1] for i in range(len(data))]


def _whole(found: Any) -> list[int]:
    values = found.tolist() if hasattr(found, "tolist") else found
    good = isinstance(values, list) and all(map(_is_label, values))
    return [int(value) for value in values] if good else []


def _is_label(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def read_item(where: str, data: Any, i: int) -> tuple[object, int]:
    """One item: a picture, it is to be hoped, and its label.

    Raises:
        DataError: it cannot be read or has no whole number as its label.
    """
    item = attempt(f"{where}: cannot read it", partial(data.__getitem__, i))
    label = item[1] if isinstance(item, tuple) and len(item) == 2 else None
    if label is None or not _is_label(label):
        msg = f"{where}: expected a picture and one whole number as its label"
        raise DataError(f"{msg}, found {ascii(item)[:60]}: choose another data set")
    return item[0], int(label)


def names_of(name: str, parts: tuple[Any, ...], numbers: list[int]) -> list[str]:
    """A name for the class of each number: the data set's own, or `class NUMBER`.

    Raises:
        DataError: the parts have different lists of names.
    """
    listed = {_listed(data) for data in parts}
    if len(listed) > 1:
        raise DataError(f"torchvision:{name}: its parts name their classes differently: take one")
    (names,) = listed
    if numbers and numbers[-1] < len(names):
        return [names[number] for number in numbers]
    return [f"class {number}" for number in numbers]


def _listed(data: Any) -> tuple[str, ...]:
    """The class names that a data set states, or none if two of them are equal."""
    for key in _NAMES:
        found = getattr(data, key, None)
        if isinstance(found, list | tuple) and found:
            # ImageNet gives a tuple of synonyms for each.
            names = tuple(", ".join(n) if isinstance(n, tuple) else str(n) for n in found)
            return names if len(set(names)) == len(names) else ()
    return ()
