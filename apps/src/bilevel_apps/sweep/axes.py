"""What a sweep varies: a key of the configuration, and its values or its range."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

from bilevel_apps.config import describe_keys, parse_yaml
from bilevel_apps.errors import InputError

__all__ = ["Axis", "Choices", "Range", "Settings", "grid", "parse_axes"]

Settings = dict[str, Any]

RANGE = re.compile(r"\s*([-+.\deE]+?)\s*\.\.\s*([-+.\deE]+?)\s*")
LOG_RATIO = 10.0  # positive bounds that differ by more are sampled by their logarithms


@final
@dataclass(frozen=True)
class Choices:
    """Values to take one of."""

    values: tuple[Any, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from low to high, both included; whole ones if the bounds were written so."""

    low: float
    high: float
    whole: bool

    @property
    def log(self) -> bool:
        """Whether to sample the logarithm uniformly."""
        return self.low > 0 and self.high >= LOG_RATIO * self.low


@final
@dataclass(frozen=True, kw_only=True)
class Axis:
    """A key, such as `inner.steps`, and what it takes."""

    key: str
    domain: Choices | Range


def parse_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Return what `KEY=V1,V2,…` and `KEY=LOW..HIGH` say; values are read as YAML.

    Raises:
        InputError: a text of another form, an unknown key, or one that comes twice.
    """
    axes = tuple(_axis(text) for text in texts)
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"`axes`={key}: given twice: put all its values into one `axes`")
    return axes


def grid(axes: Sequence[Axis]) -> Iterator[Settings]:
    """Yield every combination; the last axis changes fastest.

    Raises:
        InputError: an axis is a range.
    """
    columns = []
    for axis in axes:
        if isinstance(axis.domain, Range):
            raise InputError(
                f"`axes`={axis.key}: a range has no grid: list its values with commas between, or "
                "add `sampler`=random or tpe"
            )
        columns.append(axis.domain.values)
    for values in product(*columns):
        yield {axis.key: value for axis, value in zip(axes, values, strict=True)}


def _axis(text: str) -> Axis:
    key, equals, values = text.partition("=")
    source = f"`axes`={text}"
    if not equals or not key or not values.strip():
        raise InputError(f"{source}: expected KEY=VALUE,VALUE,…, such as inner.steps=3,5,8,12")
    if key not in describe_keys():
        raise InputError(f"{source}: unknown key {key}: bilevel-train --help lists the keys")
    found = RANGE.fullmatch(values)
    return Axis(key=key, domain=_range(found, source) if found else _choices(values, source))


def _choices(text: str, source: str) -> Choices:
    """Read `3,5` as YAML's `[3,5]`: brackets and quotes then protect commas."""
    values = parse_yaml(f"[{text}]", source)
    try:
        texts = [json.dumps(value, allow_nan=False) for value in values]
    except (TypeError, ValueError):  # dates, infinities
        raise InputError(f"{source}: expected numbers, words, true, false or null") from None
    if len(set(texts)) < len(texts):
        raise InputError(f"{source}: a value comes twice: leave one out")
    return Choices(tuple(values))


def _range(found: re.Match[str], source: str) -> Range:
    try:
        low, high = (float(bound) for bound in found.groups())
    except ValueError:
        raise InputError(f"{source}: expected LOW..HIGH, such as train.lr=1e-4..1e-2") from None
    if not low < high:
        raise InputError(f"{source}: expected a lower bound below the upper one")
    whole = all(re.fullmatch(r"[-+]?\d+", bound) for bound in found.groups())
    return Range(low=low, high=high, whole=whole)
