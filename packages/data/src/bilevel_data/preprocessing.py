"""How a picture becomes an image, as a part of a store's manifest that can be done again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from PIL import Image

from bilevel_data.errors import DataError
from bilevel_data.ink import INKS, Ink, Pixels, ink_of

__all__ = ["Preprocessing"]

_KEYS = ("size", "channels", "inverted", "crop", "ink", "note")
_MOST = 2**31
# Schema 1 had a sentence for people, in which these words had a meaning.
_INVERTED, _WHOLE = "ink 255", "resized whole"


@final
@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What was done to the pictures of a data set; `apply` does it to another picture.

    Attributes:
        size: `(height, width)` of the images.
        channels: 1 for grey, 3 for colour; a data set of one's own may have others.
        inverted: bright became dark and dark became bright.
        crop: the largest square in the middle was cut out and then resized; otherwise the whole
            picture was, and its proportions may have changed.
        ink: of drawings, the ink that the *images* have: `"bright"` on a dark ground, as
            Omniglot's, or `"dark"` on a light one. None for what is no drawing, and where it is
            not known.
        note: what else there is to say, for people.

    Raises:
        DataError: a value of the wrong kind.
    """

    size: tuple[int, int]
    channels: int
    inverted: bool = False
    crop: bool = True
    ink: Ink | None = None
    note: str = ""

    def __post_init__(self) -> None:
        counts = (*self.size, self.channels)
        _require(len(self.size) == 2 and all(map(_is_count, self.size)), "size", self.size)
        _require(_is_count(self.channels), "channels", counts)
        for key in ("inverted", "crop"):
            _require(isinstance(getattr(self, key), bool), key, getattr(self, key))
        _require(self.ink is None or self.ink in INKS, "ink", self.ink)
        text = isinstance(self.note, str) and (not self.note or self.note.isprintable())
        _require(text, "note", self.note)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of an image."""
        return (*self.size, self.channels)

    def __str__(self) -> str:
        """What was done, for people."""
        colours = {1: "grey", 3: "colour"}.get(self.channels, f"{self.channels} channels")
        parts = [
            "×".join(map(str, self.size)),
            colours,
            "centre square" if self.crop else "resized whole",
        ]
        parts += ["inverted"] if self.inverted else []
        parts += [f"{self.ink} ink"] if self.ink else []
        return ", ".join([*parts, *filter(None, [self.note])])

    def apply(self, picture: Image.Image, *, ink: Ink | Literal["auto"] | None = None) -> Pixels:
        """The image of a picture that is upright, 8-bit, and grey or RGB as `channels` says.

        It is resized with Lanczos, unless it has the size already.

        Args:
            picture: as `read_picture` returns it.
            ink: the picture's own, `"auto"` to tell it from its border, or None to do what was
                done to the others. Where it is known, the image gets the ink of the others.

        Returns:
            `(H, W, C)` uint8.
        """
        return self.inked(self.fit(picture), ink)

    def fit(self, picture: Image.Image) -> Pixels:
        """A picture cut and resized, its ink as it is."""
        height, width = self.size
        box = _middle(picture.size, height, width) if self.crop else None
        if picture.size != (width, height) or box is not None:
            picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
        return np.asarray(picture, dtype=np.uint8).reshape(height, width, self.channels)

    def inked(self, image: Pixels, ink: Ink | Literal["auto"] | None) -> Pixels:
        """An image that `fit` made, in the ink of the others; `ink` as for `apply`."""
        return 255 - image if self.inverts(ink_of(image) if ink == "auto" else ink) else image

    def inverts(self, ink: Ink | None) -> bool:
        """Whether a picture with this ink is inverted; None does as with the others."""
        return self.inverted if ink is None or self.ink is None else ink != self.ink

    def with_common_ink(self, ink: Ink | None) -> "Preprocessing":
        """The same for pictures of which most have this ink: what is not told from a border."""
        return self if ink is None else replace(self, inverted=self.inverts(ink))

    def differences(self, other: "Preprocessing") -> tuple[str, ...]:
        """In what images that were prepared like this differ from images prepared like another.

        Where an ink is not known, nothing is said of it.
        """
        found = []
        if self.image_shape != other.image_shape:
            found.append(f"images of {self.image_shape} and not {other.image_shape}")
        if None not in (self.ink, other.ink) and self.ink != other.ink:
            found.append(f"{self.ink} ink and not {other.ink}")
        if self.crop != other.crop:
            how = ("cut to a square", "resized whole")
            found.append(" and not ".join(how if self.crop else how[::-1]))
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it; `from_dict` reads it back."""
        return {key: getattr(self, key) for key in _KEYS} | {"size": list(self.size)}

    @staticmethod
    def from_dict(record: object) -> "Preprocessing":
        """Read what `as_dict` made.

        Raises:
            DataError: it is something else.
        """
        if not isinstance(record, Mapping) or set(record) != set(_KEYS):
            raise _refused("keys", record)
        if not isinstance(record["size"], list):
            raise _refused("size", record["size"])
        return Preprocessing(**{**dict(record), "size": tuple(record["size"])})

    @staticmethod
    def from_text(text: str, image_shape: tuple[int, int, int]) -> "Preprocessing":
        """Read what a store of schema 1 says in words of images of this `(H, W, C)`."""
        inverted = _INVERTED in text
        return Preprocessing(
            size=image_shape[:2],
            channels=image_shape[2],
            inverted=inverted,
            crop=_WHOLE not in text,
            ink="bright" if inverted else None,
            note=text,
        )


def _middle(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int] | None:
    """The largest box in the middle of a picture with the proportions of the images."""
    wide = min(size[0], size[1] * width // height)
    high = min(size[1], size[0] * height // width)
    wide, high = max(1, wide), max(1, high)
    if (wide, high) == size:
        return None
    left, top = (size[0] - wide) // 2, (size[1] - high) // 2
    return left, top, left + wide, top + high


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST


def _require(good: bool, key: str, found: object) -> None:
    if not good:
        raise _refused(key, found)


def _refused(key: str, found: object) -> DataError:
    return DataError(f"preprocessing: {key}: found {ascii(found)[:80]}: prepare the store again")
