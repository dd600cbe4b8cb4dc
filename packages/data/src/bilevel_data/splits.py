"""Which class goes to which split: pure functions of the class names.

References:
    Meta-learning with memory-augmented neural networks (Santoro et al., 2016), section 4: 1200
        training characters of Omniglot, 423 for test.
    Matching networks for one shot learning (Vinyals et al., 2016): the 1028/172/423 characters
        of the public lists.
    Human-level concept learning through probabilistic program induction (Lake et al., 2015):
        30 background and 20 evaluation alphabets.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from bilevel_data.dataset import SPLIT_NAMES
from bilevel_data.episodes.counter_random import permutation
from bilevel_data.errors import DataError

__all__ = [
    "EVALUATION_ALPHABETS",
    "OMNIGLOT_SPLITS",
    "ClassSplits",
    "by_fraction",
    "from_file",
    "official",
    "santoro",
    "split_named",
    "vinyals",
]

ClassSplits: TypeAlias = dict[str, tuple[str, ...]]

EVALUATION_ALPHABETS = (
    "Angelic",
    "Atemayar_Qelisayer",
    "Atlantean",
    "Aurek-Besh",
    "Avesta",
    "Ge_ez",
    "Glagolitic",
    "Gurmukhi",
    "Kannada",
    "Keble",
    "Malayalam",
    "Manipuri",
    "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)",
    "Oriya",
    "Sylheti",
    "Syriac_(Serto)",
    "Tengwar",
    "Tibetan",
    "ULOG",
)
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
_VINYALS_FIRST_TEST = "Gurmukhi/character42"
_MAX_FILE_BYTES = 8 << 20


def split_named(name: str) -> str | None:
    """The split that a directory's name stands for, in any capitals, such as `Valid` for val."""
    return _SPLIT_WORDS.get(name.lower())


def santoro(names: Sequence[str], *, train: int = 1200, val: int = 100) -> ClassSplits:
    """Omniglot as in Santoro et al. (2016): 1200 training characters drawn once, 423 for test.

    The last `val` of the training characters are for meta-validation: 1100/100/423, where the
    code of Franceschi et al. (2018) has 1200/100/323. The draw depends on the sorted names alone.
    """
    names = _sorted(names, minimum=train + 1)
    order = [names[i] for i in permutation(len(names), "bilevel-data omniglot santoro 1")]
    return _tidy(order[: train - val], order[train - val : train], order[train:])


def vinyals(names: Sequence[str]) -> ClassSplits:
    """Omniglot's 1028/172/423 characters of the public lists.

    They follow the sorted list of classes: five whole background alphabets are for validation,
    and the evaluation alphabets are cut before the 42nd character of Gurmukhi.
    """
    names = _sorted(names)
    val = [name for name in names if _alphabet(name) in _VINYALS_VAL]
    test = [
        name
        for name in names
        if _alphabet(name) in EVALUATION_ALPHABETS and name >= _VINYALS_FIRST_TEST
    ]
    return _tidy([name for name in names if name not in {*val, *test}], val, test)


def official(names: Sequence[str]) -> ClassSplits:
    """Omniglot by alphabet: 30 background alphabets to learn from, 20 evaluation ones to test.

    The last five background alphabets in sorted order are for validation.
    """
    names = _sorted(names)
    background = sorted({_alphabet(name) for name in names} - set(EVALUATION_ALPHABETS))
    groups = (background[:-5], background[-5:], EVALUATION_ALPHABETS)
    return _tidy(*([name for name in names if _alphabet(name) in group] for group in groups))


OMNIGLOT_SPLITS: Mapping[str, Callable[[Sequence[str]], ClassSplits]] = MappingProxyType(
    {"santoro": santoro, "vinyals": vinyals, "official": official}
)


def by_fraction(
    names: Sequence[str],
    fractions: tuple[float, float, float] = (0.64, 0.16, 0.20),
    *,
    seed: int = 0,
) -> ClassSplits:
    """Deal any classes out at random: every split gets its share, and at least one class.

    Args:
        names: the classes, in any order.
        fractions: positive shares of train, val and test, with sum 1.
        seed: another seed deals otherwise.

    Raises:
        DataError: fewer than three classes, a name twice, or shares that are not shares.
    """
    if not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):  # nor with a NaN
        raise DataError(f"fractions: expected three positive shares with sum 1, found {fractions}")
    names = _sorted(names, minimum=3)
    order = [names[i] for i in permutation(len(names), f"bilevel-data by_fraction 1 {seed}")]
    test = min(max(1, round(fractions[2] * len(names))), len(names) - 2)
    val = min(max(1, round(fractions[1] * len(names))), len(names) - test - 1)
    train = len(names) - val - test
    return _tidy(order[:train], order[train : train + val], order[train + val :])


def from_file(names: Sequence[str], path: Path) -> ClassSplits:
    """Classes as a JSON file deals them out, such as `{"train": ["cat"], "test": ["dog"]}`.

    Splits and classes that the file does not name are left out.

    Args:
        names: the classes that there are.
        path: the file.

    Raises:
        DataError: it cannot be read, is not such an object, or names a class that there is not,
            or one class twice.
    """
    record = _read_json(path)
    given = {name: record.get(name, []) for name in SPLIT_NAMES}
    lists = all(isinstance(group, list) and group for group in record.values())
    if not record or set(record) - set(SPLIT_NAMES) or not lists:
        expected = f"an object with some of {', '.join(SPLIT_NAMES)}, each a list of class names"
        raise DataError(f"{path}: expected {expected}, found {ascii(record)[:80]}: correct it")
    every = [name for group in given.values() for name in group]
    have = set(names)
    for k, name in enumerate(every):
        if not isinstance(name, str) or name not in have:
            some = ", ".join(map(ascii, sorted(have)[:3]))
            raise DataError(
                f"{path}: expected class names such as {some}, found {name!r}"[:300]
                + ": correct it"
            )
        if name in every[:k]:
            raise DataError(f"{path}: expected each class once, found {name!r} twice: remove one")
    return {name: tuple(sorted(group)) for name, group in given.items() if group}


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise DataError(f"{path}: expected a file of splits, found no plain file: give another")
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as err:
        raise DataError(
            f"{path}: cannot read this file of splits ({err.strerror}): give another"
        ) from None
    if len(content) > _MAX_FILE_BYTES:
        raise DataError(f"{path}: more than {_MAX_FILE_BYTES} bytes: leave out what is no class")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: expected JSON, found something else: correct it") from None
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected a JSON object, found {ascii(record)[:80]}: correct it")
    return record


def _sorted(names: Sequence[str], *, minimum: int = 1) -> list[str]:
    if len(set(names)) < len(names) or len(names) < minimum:
        msg = (
            f"classes: expected at least {minimum} different names, "
            f"found {len(names)} of which {len(set(names))} different"
        )
        raise DataError(msg)
    return sorted(names)


def _alphabet(name: str) -> str:
    return name.split("/")[0]


def _tidy(*groups: Sequence[str]) -> ClassSplits:
    splits = {name: tuple(sorted(group)) for name, group in zip(SPLIT_NAMES, groups, strict=True)}
    empty = [name for name, group in splits.items() if not group]
    if empty:
        raise DataError(f"classes: none is left for {', '.join(empty)}: this split does not fit")
    return splits
