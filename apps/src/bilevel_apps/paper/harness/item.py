"""The contract of a table or figure: what it is called, what the paper says, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias, final

from bilevel_apps.paper.harness.cache import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Claim", "Item", "Report", "Row", "Scale"]

Row: TypeAlias = Mapping[str, Any]
"""A row of a table by its columns: numbers, texts, or None for an empty cell."""


class Scale(StrEnum):
    """How much is computed: enough to see the claims, or the paper's sizes where it gives them."""

    QUICK = "quick"
    FULL = "full"


@final
@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that the paper says, and whether it is so here.

    Attributes:
        text: what is claimed.
        holds: whether the numbers show it.
        found: the numbers, in words.
    """

    text: str
    holds: bool
    found: str


@final
@dataclass(frozen=True, kw_only=True)
class Report:
    """What an item came to.

    Attributes:
        rows: the table, all rows with the same columns.
        details: what the rows and the picture are made of, likewise.
        claims: at least one.
        picture: draws it.
        settings: everything that decides the numbers.
        cost: counted work, by name; `seconds` is what all parts took, and `shared`, where it is,
            says with which other items.
        differs: what is not as in the paper, or not known of it, a sentence each.
        metrics: what the tracker keeps.
    """

    rows: Sequence[Row]
    details: Sequence[Row]
    claims: Sequence[Claim]
    picture: Callable[[], Figure]
    settings: Mapping[str, Any]
    cost: Mapping[str, Any]
    differs: Sequence[str]
    metrics: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class Item:
    """A table or figure.

    Attributes:
        name: as on the command line.
        title: one line.
        paper: what the paper says, as Markdown.
        seeds: by scale, how many data sets where `--seeds` does not say.
        run: computes, piece by piece through `Work.parts`, and reports. It trains by functions of
            the library alone.
        data: the data sets that it is about, by the names that their stores give them; of several
            stores it takes the first of these. None: it needs no store.
        cells: the parts that can be computed on their own; empty: it has none.
        trains: it trains networks, whose settings can be changed.
        fixed: the settings that make its cells what they are, and cannot be.
        shows: it shows a run; one with cells can take a run for each of them.
    """

    name: str
    title: str
    paper: str
    seeds: Mapping[Scale, int]
    run: Callable[[Work], Report]
    data: tuple[str, ...] | None = None
    cells: tuple[str, ...] = ()
    trains: bool = False
    fixed: tuple[str, ...] = ()
    shows: bool = False
