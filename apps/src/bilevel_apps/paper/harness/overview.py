"""Every item one after another, and the page that shows them side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from bilevel_apps.errors import InputError, RunError
from bilevel_apps.paper.harness.item import Item, Report, Row
from bilevel_apps.paper.harness.make import ItemRequest, run_item
from bilevel_apps.paper.harness.render import claim_line, markdown_table
from bilevel_apps.runs.build import store_of
from bilevel_apps.system.files import check_writable, write_files
from bilevel_apps.system.terminal import say
from bilevel_data import DataError

__all__ = ["PAGE", "ItemOutcome", "run_all", "total_seconds"]

PAGE = "all.md"


@final
@dataclass(frozen=True, kw_only=True)
class ItemOutcome:
    """What came of an item.

    Attributes:
        item: which.
        report: None where there is none: the item needs a store and none was given, or it failed.
        error: why it failed.
    """

    item: Item
    report: Report | None = None
    error: str = ""

    @property
    def said(self) -> str:
        """What there is to say of it, in a few words."""
        if self.report is None:
            return f"failed: {self.error}" if self.error else "left out: it takes a store, --data"
        claims = self.report.claims
        return f"{sum(claim.holds for claim in claims)} of {len(claims)} claims hold"

    @property
    def holds(self) -> bool:
        """Whether nothing went wrong: no failure, and no claim that does not hold."""
        return not self.error and all(c.holds for c in (self.report.claims if self.report else ()))

    def row(self) -> Row:
        """Return its line of the table."""
        seconds = None if self.report is None else self.report.cost["seconds"]
        return {"item": self.item.name, "": self.said, "seconds": seconds}


def run_all(items: Iterable[Item], request: ItemRequest) -> list[ItemOutcome]:
    """Compute the items that the stores allow, and write a page of them into the folder.

    One that fails does not stop the others.

    Args:
        items: in this order.
        request: for each; those that take no store do without its `data`.

    Raises:
        InputError: the folder or a store cannot be used.
        bilevel_data.DataError: a store is damaged.
        RunError: the page cannot be written.
    """
    for path in request.data:
        store_of(path)
    check_writable(request.out)
    outcomes = []
    for item in items:
        outcomes.append(_outcome(item, request))
        say(f"{item.name}: {outcomes[-1].said}")
    write_files(request.out, {PAGE: _page(outcomes).encode()})
    return outcomes


def total_seconds(costs: Iterable[Mapping[str, Any]]) -> float:
    """Return what items took together by their costs; what some of them share counts once."""
    seconds = {cost.get("shared", n): float(cost["seconds"]) for n, cost in enumerate(costs)}
    return sum(seconds.values())


def _outcome(item: Item, request: ItemRequest) -> ItemOutcome:
    if item.data is not None and not request.data:
        return ItemOutcome(item=item)
    own = replace(request, data=request.data if item.data is not None else ())
    try:
        return ItemOutcome(item=item, report=run_item(item, own)[0])
    except (InputError, RunError, DataError) as error:
        return ItemOutcome(item=item, error=str(error))


def _page(outcomes: Sequence[ItemOutcome]) -> str:
    costs = [outcome.report.cost for outcome in outcomes if outcome.report is not None]
    minutes = total_seconds(costs) / 60
    parts = [
        "# The paper's tables and figures",
        f"Computed in {minutes:.1f} minutes; what items share is counted once.",
        markdown_table([outcome.row() for outcome in outcomes]),
        *(_section(outcome.item, outcome.report) for outcome in outcomes if outcome.report),
    ]
    return "\n\n".join(parts) + "\n"


def _section(item: Item, report: Report) -> str:
    claims = "\n".join(f"- {claim_line(claim)}" for claim in report.claims)
    picture = f"![{item.title}]({item.name}.png)"
    return f"## [{item.name}]({item.name}.md): {item.title}\n\n{picture}\n\n{claims}"
