"""The card of pretrained weights: what they are, how to use them, how good they were."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

__all__ = ["FORMAT", "Card", "parse_card"]

FORMAT = "bilevel-weights-2"

DATA_KEYS = {"name", "source", "licence", "splits"}
SCORE_KEYS = {"split", "way", "shot", "query", "episodes", "seed", "accuracy", "ci95"}
HEAD_KEYS = {"shrinkage", "temperature", "decay"}
TRAINING_KEYS = {"seed", "step", "command", "config", "environment"}


@final
@dataclass(frozen=True, kw_only=True)
class Card:
    """What weights are, and how they are to be used; checked when it is made.

    Attributes:
        tag: their name.
        model: of the backbone, as `create_model` takes it.
        options: likewise, such as `channels` and `image_size`.
        image_shape: (height, width, channels) of the images, which are in [0, 1].
        preprocessing: how the images were made, as the data set's manifest has it.
        data: `name`, `source` and `licence` of the data set, and `splits`: SHA-256 of the pixels
            of each.
        normalization: a `Normalization`, by its value.
        unit_length: whether features are divided by their length.
        steps: T, inner steps, where heads are trained by descent; None: not by these weights.
        step_size: η.
        scale: s, the factor on the features.
        head: the numbers of a `heads.HeadSolver`, whose running mean is beside the weights:
            `shrinkage`, `temperature` and `decay`. None: they were trained for descent alone.
        accuracy: what was measured: `split`, `way`, `shot`, `query`, `episodes` and their `seed`,
            `accuracy` and half its 95 % interval `ci95`; `rotations` where turned copies counted as
            classes, and then `upright` without them.
        training: `seed`, hyper-iterations `step`, the `command`, its whole `config`, and the
            `environment`: device, threads and versions.
        sha256: of the weights file.

    Raises:
        ValueError: a value of the wrong kind.
    """

    tag: str
    model: str
    options: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    preprocessing: Mapping[str, Any] | str
    data: Mapping[str, Any]
    normalization: str
    unit_length: bool
    steps: int | None
    step_size: float
    scale: float
    head: Mapping[str, float] | None
    accuracy: tuple[Mapping[str, Any], ...]
    training: Mapping[str, Any]
    sha256: str

    def __post_init__(self) -> None:
        for name, (fits, expected) in _FIELDS.items():
            if not fits(value := getattr(self, name)):
                raise ValueError(f"{name}: expected {expected}, found {_short(value)}")

    def to_json(self) -> str:
        """Return the card as JSON that `parse_card` reads back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def parse_card(text: bytes | str, source: str) -> Card:
    """Read a card back from JSON; `source` stands in the message.

    Raises:
        ValueError: not a card of this version.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{source}: not JSON: reinstall bilevel-models") from None
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise ValueError(f"{source}: not a card of this version ({FORMAT}): reinstall it")
    if found.keys() != _FIELDS.keys():
        differ = ", ".join(sorted(found.keys() ^ _FIELDS.keys()))
        raise ValueError(f"{source}: keys missing or unknown ({differ}): reinstall bilevel-models")
    for name in ("image_shape", "accuracy"):
        if isinstance(found[name], list):
            found[name] = tuple(found[name])
    try:
        return Card(**found)
    except ValueError as error:
        raise ValueError(f"{source}: {error}: reinstall bilevel-models") from None


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(value: object) -> bool:
    # Printable only, so that what is read from a file cannot steer a terminal.
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _preprocessing(value: object) -> bool:
    if isinstance(value, dict):
        plain = (str, int, list, type(None))
        return bool(value) and all(_text(k) and isinstance(v, plain) for k, v in value.items())
    return _text(value)


def _tag(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[a-z0-9][a-z0-9-]*", value) is not None


def _digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _positive(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _head(value: object) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and value.keys() == HEAD_KEYS
        and all(map(_positive, value.values()))
    )


def _count(value: object, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _shape(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(_count, value))


def _options(value: object) -> bool:
    return isinstance(value, dict) and all(type(v) in (int, bool) for v in value.values())


def _data(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != DATA_KEYS:
        return False
    splits = value["splits"]
    own = all(_text(value[key]) for key in DATA_KEYS - {"splits"})
    return own and isinstance(splits, dict) and all(map(_digest, splits.values()))


def _scores(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_score, value))


def _score(value: object) -> bool:
    if not isinstance(value, dict) or not value.keys() >= SCORE_KEYS:
        return False
    counts = all(_count(value[key]) for key in ("way", "shot", "query", "episodes"))
    shares = (value["accuracy"], value["ci95"])
    return counts and all(isinstance(share, float) and 0 <= share <= 1 for share in shares)


def _training(value: object) -> bool:
    if not isinstance(value, dict) or not value.keys() >= TRAINING_KEYS:
        return False
    counts = all(_count(value[key], 0) for key in ("seed", "step"))
    parts = all(isinstance(value[key], dict) for key in ("config", "environment"))
    return counts and parts and _text(value["command"])


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "tag": (_tag, "lower-case letters, digits and hyphens"),
    "model": (_text, "a name"),
    "options": (_options, "whole numbers or true or false by name"),
    "image_shape": (_shape, "three positive whole numbers"),
    "preprocessing": (_preprocessing, "how images were made, by name or in printable words"),
    "data": (_data, f"{', '.join(sorted(DATA_KEYS))}, with hashes of the splits"),
    "normalization": (_text, "a name"),
    "unit_length": (lambda value: isinstance(value, bool), "true or false"),
    "steps": (lambda value: value is None or _count(value, 0), "null or a whole number"),
    "step_size": (_positive, "a positive number"),
    "scale": (_positive, "a positive number"),
    "head": (_head, f"null, or positive {', '.join(sorted(HEAD_KEYS))}"),
    "accuracy": (_scores, f"one or more of {', '.join(sorted(SCORE_KEYS))}"),
    "training": (_training, ", ".join(sorted(TRAINING_KEYS))),
    "sha256": (_digest, "64 hexadecimal digits"),
}
