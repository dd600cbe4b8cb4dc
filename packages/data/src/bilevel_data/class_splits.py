"""Class splits of standard few-shot benchmarks, as they were published.

References:
    Meta-learning with differentiable closed-form solvers (Bertinetto et al., 2019): CIFAR-FS.
    TADAM: task dependent adaptive metric (Oreshkin et al., 2018): FC100.
    A closer look at few-shot classification (Chen et al., 2019): CUB.
    Meta-Dataset: a dataset of datasets for learning to learn from few examples (Triantafillou et
        al., 2020): Aircraft, Flowers and Textures.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import final

from bilevel_data.errors import DataError
from bilevel_data.splits import ClassSplits

__all__ = ["PUBLISHED", "PublishedSplits", "published"]

Groups = Mapping[str, Sequence[str]]


@final
@dataclass(frozen=True, kw_only=True)
class PublishedSplits:
    """Which classes of a data set are for training, validation and test.

    Attributes:
        name: such as `"cifar-fs"`.
        title: what is split.
        source: who published the split.
        split_of: says of a class, as `plain` writes it, in which split it is; None for none.
        sizes: number of classes of train, val and test.
        classes: the classes by split, as they are usually written; empty where a rule says it.
    """

    name: str
    title: str
    source: str
    split_of: Callable[[str], str | None]
    sizes: tuple[int, int, int]
    classes: Groups

    def split_of_class(self, name: str) -> str | None:
        """The split of a class, which may be written as a path with it at the end."""
        return self.split_of(plain(name)) or self.split_of(plain(name.rpartition("/")[2]))

    def deal(self, names: Sequence[str], numbers: Mapping[str, int] | None = None) -> ClassSplits:
        """Deal out the classes that there are, however they write blanks, hyphens and capitals.

        Args:
            names: the classes.
            numbers: the number of each, from 1, where the split goes by numbers.

        Raises:
            DataError: a class is in no split, or a split is left without any.
        """
        keys: Mapping[str, str | int] = (
            {name: name for name in names} if numbers is None else numbers
        )
        found: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        unknown = []
        for name in sorted(names):
            split = self.split_of_class(str(keys[name]))
            if split is None:
                unknown.append(name)
            else:
                found[split].append(name)
        if unknown:
            raise DataError(
                f"splits {self.name}: {len(unknown)} classes are not of {self.title}, such as "
                f"{unknown[0]!a}: give the data set itself"
            )
        empty = [split for split, classes in found.items() if not classes]
        if empty:
            raise DataError(
                f"splits {self.name}: no class is left for {', '.join(empty)}: give all of "
                f"{self.title}"
            )
        return {split: tuple(classes) for split, classes in found.items()}


def plain(name: str) -> str:
    """A class name's letters and digits alone."""
    return re.sub("[^a-z0-9]+", "", name.lower())


def published(name: str) -> PublishedSplits:
    """A published class split by name.

    Raises:
        DataError: there is none of this name.
    """
    found = PUBLISHED.get(name)
    if found is None:
        raise DataError(f"splits: expected one of {', '.join(PUBLISHED)}, found {name!a}")
    return found


def _listed(name: str, title: str, source: str, groups: Groups) -> PublishedSplits:
    table = {plain(c): split for split, classes in groups.items() for c in classes}
    sizes = (len(groups["train"]), len(groups["val"]), len(groups["test"]))
    return PublishedSplits(
        name=name,
        title=title,
        source=source,
        split_of=table.get,
        sizes=sizes,
        classes=MappingProxyType({split: tuple(sorted(c)) for split, c in groups.items()}),
    )


_LISTS = json.loads(files("bilevel_data").joinpath("published_splits.json").read_text("utf-8"))
_CIFAR100 = _LISTS["cifar-100 superclasses"]


def _superclasses(names: Sequence[str]) -> list[str]:
    return [c for name in names for c in _CIFAR100[name]]


def _with_rest(every: Sequence[str], given: Groups) -> Groups:
    """The lists of validation and test, and all others for training."""
    taken = {*given["val"], *given["test"]}
    return {"train": [name for name in every if name not in taken], **given}


def _bird(name: str) -> str | None:
    """Every other class is for training; of the others every other one for validation."""
    found = re.match("[0-9]{3}", name)
    number = int(found[0]) if found else 0
    if not 1 <= number <= 200:
        return None
    return "train" if number % 2 else "val" if number % 4 == 2 else "test"


def _flower(name: str) -> str | None:
    found = re.fullmatch("(?:class|flower)?0*([0-9]{1,3})", name)
    number = int(found[1]) if found else 0
    if not 1 <= number <= 102:
        return None
    listed = (split for split, numbers in _LISTS["flowers"].items() if number in numbers)
    return next(listed, "train")


_META_DATASET = "Triantafillou et al. (2020), Meta-Dataset, as learn2learn lists it"
PUBLISHED: Mapping[str, PublishedSplits] = MappingProxyType(
    {
        "cifar-fs": _listed(
            "cifar-fs",
            "CIFAR-100",
            "Bertinetto et al. (2019), section 4.1; the lists are Torchmeta's",
            _with_rest(_superclasses(tuple(_CIFAR100)), _LISTS["cifar-fs"]),
        ),
        "fc100": _listed(
            "fc100",
            "CIFAR-100",
            "Oreshkin et al. (2018), section 4: whole superclasses; the lists are Torchmeta's",
            {
                split: _superclasses(names)
                for split, names in _with_rest(tuple(_CIFAR100), _LISTS["fc100"]).items()
            },
        ),
        "cub": PublishedSplits(
            name="cub",
            title="CUB-200-2011",
            source="Chen et al. (2019): of the classes in order, odd numbers train, 2, 6, 10, … "
            "validate, 4, 8, 12, … test",
            split_of=_bird,
            sizes=(100, 50, 50),
            classes={},
        ),
        "aircraft": _listed(
            "aircraft",
            "FGVC-Aircraft (variants)",
            _META_DATASET,
            _LISTS["aircraft"],
        ),
        "textures": _listed(
            "textures", "the Describable Textures Dataset", _META_DATASET, _LISTS["textures"]
        ),
        "flowers": PublishedSplits(
            name="flowers",
            title="the 102 category flowers, by number",
            source=_META_DATASET,
            split_of=_flower,
            sizes=(71, 15, 16),
            classes={},
        ),
    }
)
