"""What is asked of an item, and whether it has a use for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from bilevel_apps.config import flatten, with_settings
from bilevel_apps.errors import InputError
from bilevel_apps.paper.harness.item import Item, Scale
from bilevel_apps.runs.build import store_of

__all__ = ["ItemRequest", "check_options", "runs_of", "store_for", "stores_of"]


@final
@dataclass(frozen=True, kw_only=True)
class ItemRequest:
    """What is asked of an item.

    Attributes:
        out: the folder of the files; the records are in NAME/SCALE below it.
        scale: how much to compute.
        seeds: how many data sets, or trainings; None takes the item's own number.
        track: log to MLflow.
        data: stores; an item takes those of the data sets that it is about.
        only: the cells to compute; empty: all.
        assignments: changes of the settings of what is trained, `key=value` each.
        runs: folders of runs, or `pretrained:TAG`, to show; `CELL=DIR` each where there are cells.
    """

    out: Path
    scale: Scale = Scale.QUICK
    seeds: int | None = None
    track: bool = True
    data: tuple[Path, ...] = ()
    only: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


GIVEN = {"data": "`data`", "seed": "`seeds`", "tracking": "`track`"}
"""Settings, or sections of them, that other options give."""


def check_options(item: Item, request: ItemRequest) -> None:
    """Refuse options that mean nothing to the item, before any work.

    Raises:
        InputError: an option that the item does not take.
    """
    unknown = [cell for cell in request.only if cell not in item.cells]
    if unknown:
        known = f"one of {', '.join(item.cells)}" if item.cells else "none: it has no parts"
        raise InputError(f"`only`={unknown[0]}: {item.name} has no such part: choose {known}")
    if request.assignments and not item.trains:
        raise InputError(
            f"`assignments`={request.assignments[0]}: {item.name} trains no network: leave "
            "`assignments` out"
        )
    if request.data and item.data is None:
        raise InputError(f"`data`={request.data[0]}: {item.name} takes no store: leave `data` out")
    for key in flatten(with_settings({}, request.assignments)):
        if key in item.fixed:
            raise InputError(
                f"`assignments`={key}: the parts of {item.name} are what they are by their {key}: "
                "choose them with `only`"
            )
        option = GIVEN.get(key.partition(".")[0])
        if option is not None:
            raise InputError(
                f"`assignments`={key}: use {option} for it, and leave `assignments` out"
            )


def runs_of(item: Item, request: ItemRequest) -> dict[str, Path]:
    """Return the runs to show by the cells they are for.

    Raises:
        InputError: the item shows none, or one is not of a cell that is computed.
    """
    given, only = request.runs, request.only
    if given and not item.shows:
        raise InputError(f"`runs`={given[0]}: {item.name} shows no run: leave `runs` out")
    runs: dict[str, Path] = {}
    for text in given:
        cell, equals, folder = text.partition("=") if item.cells else ("", "=", text)
        if not (equals and folder) or (item.cells and cell not in item.cells):
            names = ", ".join(item.cells)
            raise InputError(f"`runs`={text}: expected PART=DIR with PART one of {names}")
        if cell and only and cell not in only:
            raise InputError(f"`runs`={text}: `only` leaves {cell} out: leave one of the two out")
        if cell in runs:
            raise InputError(f"`runs`={text}: {runs[cell]} was given for the same: leave one out")
        runs[cell] = Path(folder)
    return runs


def stores_of(item: Item, request: ItemRequest) -> dict[str, Path]:
    """Return the stores that were given by the names of their data sets.

    Raises:
        InputError: none was given and the item needs one, or two are of one data set.
        bilevel_data.DataError: one cannot be used.
    """
    if item.data is None:
        return {}
    if not request.data:
        store_of(None)
    stores: dict[str, Path] = {}
    for path in request.data:
        name = store_of(path).manifest.name
        if name in stores:
            raise InputError(f"`data`={path}: {stores[name]} is of {name} too: give one of them")
        stores[name] = path
    return stores


def store_for(names: Sequence[str], stores: Mapping[str, Path]) -> Path:
    """Return the store to take: the one of the preferred data set, or else the first."""
    return next((stores[name] for name in names if name in stores), next(iter(stores.values())))
