"""Features in the place of pictures: what a store of them says of where they come from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from bilevel_data.errors import DataError

__all__ = ["Features"]

_KEYS = ("backbone", "weights", "weights_sha256", "images")


@final
@dataclass(frozen=True, kw_only=True)
class Features:
    """What made the vectors of a store; each is kept as an image of 1×1 with a channel a number.

    How the pictures behind them were made is in the manifest's `preprocessing`.

    Attributes:
        backbone: the network's name, such as `"c4l"`.
        weights: where its weights came from, for people.
        weights_sha256: of those weights, in hexadecimal.
        images: SHA-256 of the pixels of each split.

    Raises:
        DataError: a text is empty or unprintable, or a hash is malformed.
    """

    backbone: str
    weights: str
    weights_sha256: str
    images: Mapping[str, str]

    def __post_init__(self) -> None:
        for key in ("backbone", "weights"):
            text = getattr(self, key)
            good = isinstance(text, str) and bool(text.strip()) and text.isprintable()
            _require(good, key, text)
        for sha256 in (self.weights_sha256, *self.images.values()):
            good = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None
            _require(good, "sha256", sha256)

    def __str__(self) -> str:
        """Where the vectors come from, for people."""
        return f"{self.backbone}, weights {self.weights} ({self.weights_sha256[:12]}…)"

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it; `from_dict` reads it back."""
        return {key: getattr(self, key) for key in _KEYS} | {"images": dict(self.images)}

    @staticmethod
    def from_dict(record: object) -> "Features":
        """Read what `as_dict` made.

        Raises:
            DataError: it is something else.
        """
        if not isinstance(record, dict) or set(record) != set(_KEYS):
            raise _refused("keys", record)
        if not isinstance(record["images"], dict):
            raise _refused("images", record["images"])
        return Features(**record)


def _require(good: bool, key: str, found: object) -> None:
    if not good:
        raise _refused(key, found)


def _refused(key: str, found: object) -> DataError:
    return DataError(
        f"features: {key}: found {ascii(found)[:80]}: make the store again with "
        "`bilevel-data features`"
    )
