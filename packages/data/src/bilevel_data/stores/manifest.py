"""The manifest of a store: what is in the file and where it came from."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from bilevel_data.dataset import SPLIT_NAMES
from bilevel_data.errors import DataError
from bilevel_data.features import Features
from bilevel_data.preprocessing import Preprocessing

__all__ = ["FORMAT", "SCHEMA", "Manifest", "SplitInfo", "parse_manifest"]

FORMAT = "bilevel-data store"
# In schema 1 `preprocessing` is a sentence, and `left_out` is missing. Stores of features alone
# have schema 3, so that what reads no more than 2 reads every store of pictures.
_FIRST, SCHEMA, _OF_FEATURES = 1, 2, 3
_LIMIT = 2**31
_TEXTS = ("name", "source", "licence")
_KEYS = {"format", "schema", *_TEXTS, "preprocessing", "rotations_are_classes", "splits", "creator"}
_SPLIT_KEYS = {"class_names", "images", "image_shape", "sha256"}


@final
@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split of a manifest.

    Attributes:
        class_names: one name a class, in the order of the images.
        images: number of images N.
        image_shape: `(H, W, C)`.
        sha256: SHA-256 of the `(N, H, W, C)` pixels in C order, in hexadecimal.
    """

    class_names: tuple[str, ...]
    images: int
    image_shape: tuple[int, int, int]
    sha256: str

    def __post_init__(self) -> None:
        names, shape = self.class_names, self.image_shape
        _require(bool(names) and all(map(_is_text, names)), "class_names", "printable names", names)
        _require(len(set(names)) == len(names), "class_names", "no name twice", _repeated(names))
        _require(_is_count(self.images), "images", "a positive whole number", self.images)
        _require(self.images >= len(names), "images", "at least one a class", self.images)
        _require(
            len(shape) == 3 and all(map(_is_count, shape)),
            "image_shape",
            "three positive whole numbers",
            shape,
        )
        _require(_is_sha256(self.sha256), "sha256", "64 hexadecimal digits", self.sha256)


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds; checked when it is made, whether written or read.

    Attributes:
        name: short name of the data set.
        source: where the pictures came from.
        licence: licence of the pictures.
        preprocessing: what was done to them.
        rotations_are_classes: whether rotated copies may count as classes of their own.
        splits: the splits by name, in the order train, val, test.
        creator: version of each package that wrote the file.
        left_out: how many files or classes were passed over when it was prepared, by the reason.
        features: what made them, where the images are features: float32 of shape (1, 1, dim).

    Raises:
        DataError: a text is empty or unprintable, a number or hash is malformed, a split has a
            wrong name, a class is in two splits, or features are no vectors.
    """

    name: str
    source: str
    licence: str
    preprocessing: Preprocessing
    rotations_are_classes: bool
    splits: Mapping[str, SplitInfo]
    creator: Mapping[str, str]
    left_out: Mapping[str, int] = field(default_factory=dict)
    features: Features | None = None

    def __post_init__(self) -> None:
        for key in _TEXTS:
            _require(_is_text(getattr(self, key)), key, "a printable text", getattr(self, key))
        known = isinstance(self.preprocessing, Preprocessing)
        _require(known, "preprocessing", "a Preprocessing", self.preprocessing)
        flag = self.rotations_are_classes
        _require(isinstance(flag, bool), "rotations_are_classes", "true or false", flag)
        expected = [name for name in SPLIT_NAMES if name in self.splits]
        _require(
            bool(expected) and list(self.splits) == expected,
            "splits",
            f"some of {', '.join(SPLIT_NAMES)} in that order",
            list(self.splits),
        )
        versions = [*self.creator, *self.creator.values()]
        _require(all(map(_is_text, versions)), "creator", "packages and versions", versions)
        counts = all(_is_text(k) and _is_count(v) for k, v in self.left_out.items())
        _require(counts, "left_out", "positive whole numbers by reason", dict(self.left_out))
        if self.features is not None:
            shapes = {info.image_shape for info in self.splits.values()}
            vectors = len(shapes) == 1 and min(shapes)[:2] == (1, 1)
            _require(vectors, "image_shape", "(1, 1, dim) of features in every split", shapes)
        every = [name for info in self.splits.values() for name in info.class_names]
        if len(set(every)) < len(every):
            msg = (
                f"class {_repeated(every)!r} is in two splits, but the splits of a few-shot data "
                "set hold different classes: rename or move it"
            )
            raise DataError(msg)

    @property
    def dtype(self) -> type[np.uint8 | np.float32]:
        """The type of its images' numbers."""
        return np.uint8 if self.features is None else np.float32

    def to_json(self) -> str:
        """The manifest as JSON text, keys in a fixed order; `parse_manifest` reads it back."""
        splits = {
            name: {
                "class_names": list(info.class_names),
                "images": info.images,
                "image_shape": list(info.image_shape),
                "sha256": info.sha256,
            }
            for name, info in self.splits.items()
        }
        schema = SCHEMA if self.features is None else _OF_FEATURES
        record: dict[str, object] = {"format": FORMAT, "schema": schema}
        record |= {key: getattr(self, key) for key in _TEXTS}
        record |= {"preprocessing": self.preprocessing.as_dict()}
        record |= {"rotations_are_classes": self.rotations_are_classes}
        record |= {"splits": splits, "creator": dict(self.creator), "left_out": dict(self.left_out)}
        record |= {} if self.features is None else {"features": self.features.as_dict()}
        return json.dumps(record, ensure_ascii=False)


def parse_manifest(text: bytes | str) -> Manifest:
    """Read a manifest back from JSON.

    Raises:
        DataError: not JSON, not a manifest, of another schema, or with a wrong value.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError("manifest: expected JSON, found something else: not a store") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"manifest: expected format {FORMAT!r}: not a store of this package")
    schema = record.get("schema")
    if isinstance(schema, bool) or schema not in (_FIRST, SCHEMA, _OF_FEATURES):
        msg = (
            f"manifest: this version reads schema {_FIRST} to {_OF_FEATURES}, found "
            f"{_short(schema)}: install the bilevel-data that wrote the file, or prepare it again"
        )
        raise DataError(msg)
    expected = {
        _FIRST: _KEYS,
        SCHEMA: {*_KEYS, "left_out"},
        _OF_FEATURES: {*_KEYS, "left_out", "features"},
    }[schema]
    _require(set(record) == expected, "keys", sorted(expected), sorted(record))
    objects = ("splits", "creator", *(() if schema == _FIRST else ("left_out",)))
    for key in objects:
        _require(isinstance(record[key], dict), key, "an object", record[key])
    splits = {name: _split_info(value) for name, value in record["splits"].items()}
    _require(bool(splits), "splits", f"some of {', '.join(SPLIT_NAMES)}", splits)
    return Manifest(
        **{key: record[key] for key in _TEXTS},
        preprocessing=_preprocessing(record["preprocessing"], next(iter(splits.values()))),
        rotations_are_classes=record["rotations_are_classes"],
        splits=splits,
        creator=record["creator"],
        left_out=record.get("left_out", {}),
        features=Features.from_dict(record["features"]) if schema == _OF_FEATURES else None,
    )


def _preprocessing(said: object, split: SplitInfo) -> Preprocessing:
    if isinstance(said, str):
        _require(_is_text(said), "preprocessing", "a printable text", said)
        return Preprocessing.from_text(said, split.image_shape)
    return Preprocessing.from_dict(said)


def _split_info(record: Any) -> SplitInfo:
    good = isinstance(record, dict) and set(record) == _SPLIT_KEYS
    _require(good, "split", f"an object with {sorted(_SPLIT_KEYS)}", record)
    for key in ("class_names", "image_shape"):
        _require(isinstance(record[key], list), key, "a list", record[key])
    _require(all(map(_is_text, record["class_names"])), "class_names", "printable names", record)
    return SplitInfo(
        class_names=tuple(record["class_names"]),
        images=record["images"],
        image_shape=tuple(record["image_shape"]),
        sha256=record["sha256"],
    )


def _require(good: bool, key: str, expected: object, found: object) -> None:
    if not good:
        raise DataError(f"manifest: {key}: expected {expected}, found {_short(found)}")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_text(value: object) -> bool:
    # Printable only, so that a name read from a file cannot steer a terminal.
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LIMIT


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _repeated(names: list[str] | tuple[str, ...]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
