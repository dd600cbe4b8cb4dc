"""The other nine systems of Table 3: their published figures, and how they are trained here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from bilevel_apps.paper.published import published

__all__ = ["SYSTEMS", "System", "interval"]

EPISODE_LIKE_THE_TEST = ("train.way=5", "train.query=15")
LONGER = ("train.way=5", "train.meta_batch=4", "train.steps=500")
"""For what learns slowly: more and smaller episodes than the other cells have."""

QUICK: Mapping[str, tuple[str, ...]] = {
    "neural-statistician": ("train.steps=500",),
    "meta-lstm": (*LONGER, "options.steps=3", "options.hidden=8", "options.step_size=0.1"),
    "maml": (*EPISODE_LIKE_THE_TEST, "options.steps=3", "options.test_steps=3"),
    "meta-networks": (*EPISODE_LIKE_THE_TEST, "options.embedding=16", "options.hidden=10"),
    "snail": (*LONGER, "options.filters=32"),
}
"""What changes of the preset for a training of seconds, beside what changes in all cells."""


@final
@dataclass(frozen=True, kw_only=True)
class System:
    """A row of the table.

    Attributes:
        title: as the paper calls it.
        figures: accuracy in %, and half its interval where it is given, by the task, such as
            `omniglot-5way-1shot`; of the original papers where Table 3 has others.
        note: what differs between Table 3 and its source.
        quick: changes of the preset for a training of seconds.
    """

    title: str
    figures: Mapping[str, tuple[float, float | None]]
    note: str
    quick: tuple[str, ...]


def interval(row: Sequence[float]) -> tuple[float, float | None]:
    """Return a published accuracy, and half its interval if it has one."""
    accuracy, *rest = row
    return accuracy, rest[0] if rest else None


def _systems() -> Iterator[tuple[str, System]]:
    for name, row in published("table3", "systems").items():
        words = {key: row.get(key, "") for key in ("title", "note")}
        figures = {task: interval(found) for task, found in row.items() if task not in words}
        yield name, System(figures=figures, quick=QUICK.get(name, ()), **words)


SYSTEMS: Mapping[str, System] = dict(_systems())
"""By the value of `method`."""
