"""What the items about trained cells have in common: store and preset, claims, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from bilevel_apps.evaluate.report import EvaluationReport
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.paper.harness.item import Claim, Report, Row
from bilevel_apps.paper.trained.cells import cost_of, data_name, evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "MINI",
    "OMNIGLOT",
    "Named",
    "above_chance",
    "lead",
    "percent",
    "preset_for",
    "report_cells",
    "small_store",
]

OMNIGLOT, MINI = "omniglot", "mini-imagenet"
INTERVAL = "1.96 standard errors over episodes, 95 %"

Named: TypeAlias = Sequence[tuple[str, Part]]
"""Parts, each with the name of its cell."""


def small_store(work: Work) -> Path:
    """Return the images to train on: small ones where it has to be quick."""
    return work.store if work.full else work.stores.get(OMNIGLOT, work.store)


def preset_for(store: Path, presets: Mapping[str, str]) -> str:
    """Return the preset of a store's data set; other small pictures take that of Omniglot."""
    return presets[MINI if data_name(store) == MINI else OMNIGLOT]


def report_cells(
    work: Work,
    found: Mapping[str, Sequence[Part]],
    *,
    row: Callable[[str, Part], Row],
    details: Callable[[str, Part], Sequence[Row]],
    claims: Sequence[Claim],
    draw: Callable[[Named], Figure],
    settings: Mapping[str, Any],
    differs: tuple[str, ...],
    quick: tuple[str, ...],
) -> Report:
    """Return the report of a table that has a row for every part of every cell.

    Args:
        work: which was done.
        found: what `score_cells` returned.
        row: of a part of the cell of a name.
        details: likewise.
        claims: about them.
        draw: draws the parts.
        settings: those of the item; interval and seeds are added.
        differs: what is not as in the paper.
        quick: what else is not, at the quick scale.
    """
    parts = [(name, part) for name, those in found.items() for part in those]
    return Report(
        rows=[row(name, part) for name, part in parts],
        details=[line for name, part in parts for line in details(name, part)],
        claims=claims,
        picture=partial(draw, parts),
        settings={**settings, "interval": INTERVAL, "seeds": work.seeds},
        cost=cost_of([part for _, part in parts]),
        differs=differs + (() if work.full else quick),
        metrics={
            f"{name}/accuracy": fmean(evaluation(part).score.accuracy for part in those)
            for name, those in found.items()
        },
    )


def above_chance(text: str, parts: Iterable[Part]) -> Claim:
    """Claim, in the words of `text`, that the parts are above chance by more than their interval.

    It is judged by the part that is the lowest at the lower end of its interval.
    """
    least = min(map(evaluation, parts), key=lambda found: found.score.accuracy - found.score.ci95)
    return Claim(
        text=text,
        holds=least.score.accuracy - least.score.ci95 > 1 / least.way,
        found=f"least {percent(least)} %",
    )


def lead(ours: EvaluationReport, theirs: EvaluationReport) -> float:
    """Return by how much more than the sum of both intervals one result is above another."""
    above, below = ours.score, theirs.score
    return above.accuracy - above.ci95 - below.accuracy - below.ci95


def percent(found: EvaluationReport) -> str:
    """Return the accuracy of a result and its interval, both in %."""
    return f"{100 * found.score.accuracy:.2f} ± {100 * found.score.ci95:.2f}"
