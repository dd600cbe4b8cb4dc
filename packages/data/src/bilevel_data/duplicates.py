"""What is there twice: pictures of the same pixels, and names that people read as one."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from bilevel_data.dataset import Images, SourceData
from bilevel_data.errors import DataError

__all__ = ["Twice", "folded", "image_keys", "same_images", "same_names"]


def folded(name: str) -> str:
    """A name without what people do not see: Unicode's form, capitals, blanks at its ends."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def same_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that are one when `folded`, each with the first of its kind."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        other = first.setdefault(folded(name), name)
        if other != name:
            pairs.append((other, name))
    return pairs


def image_keys(images: Images) -> NDArray[np.uint64]:
    """A number of 64 bits for each of `(n, H, W, C)` images, equal for equal pixels.

    Two different ones of a million are taken for equal with a probability of 3e-8.
    """
    digests = [
        blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def same_images(keys: Sequence[int] | NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Pairs of places of equal `image_keys`, each with the first of its kind."""
    found = np.asarray(keys, dtype=np.uint64)
    values, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    if len(values) == len(found):
        return []
    firsts = first[inverse]
    return [(int(firsts[k]), int(k)) for k in np.flatnonzero(firsts != np.arange(len(found)))]


@final
@dataclass(kw_only=True)
class Twice:
    """What a store on its way to the disk holds twice: told in a line each, or refused.

    Attributes:
        path: the store.
        strict: refuse it.
        tell: called with each line.

    Cost: 8 bytes an image, and a pass over the pixels.
    """

    path: Path
    strict: bool = False
    tell: Callable[[str], None] | None = None
    _classes: list[tuple[str, str]] = field(default_factory=list)
    _keys: list[NDArray[np.uint64]] = field(default_factory=list)

    def check_names(self, source: SourceData) -> None:
        """Look for class names that people read as one.

        Raises:
            DataError: there are some, and `strict` is set.
        """
        pairs = same_names(name for split in source.splits for name in split.class_names)
        if pairs:
            one, other = pairs[0]
            self._say(
                f"{len(pairs)} classes are there under two forms of their name, such as {one!a} "
                f"and {other!a}: join or rename them"
            )

    def add(self, split: str, name: str, images: Images) -> None:
        """Note the images of a class."""
        self._classes.append((split, name))
        self._keys.append(image_keys(images))

    def check_images(self) -> None:
        """Look for equal images in two classes, of one split or of two.

        Raises:
            DataError: there are some, and `strict` is set.
        """
        if not self._keys:
            return
        of = np.repeat(np.arange(len(self._keys)), [len(keys) for keys in self._keys])
        pairs = [(of[a], of[b]) for a, b in same_images(np.concatenate(self._keys))]
        apart = [(self._classes[a], self._classes[b]) for a, b in pairs if a != b]
        if apart:
            leaks = sum(one[0] != other[0] for one, other in apart)
            (split, name), (other_split, other) = max(apart, key=lambda p: p[0][0] != p[1][0])
            self._say(
                f"{len(apart)} pictures are in two classes, {leaks} of them in two splits, such as "
                f"one in {name!a} of {split} and {other!a} of {other_split}: remove them from one"
            )

    def _say(self, line: str) -> None:
        if self.strict:
            raise DataError(f"{self.path}: {line}, or leave out strict (--strict)")
        if self.tell is not None:
            self.tell(f"{self.path}: {line}")
