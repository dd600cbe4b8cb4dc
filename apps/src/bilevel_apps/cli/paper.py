"""`bilevel-paper`: the paper's tables and figures, one command each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilevel_apps.cli.common import Debug, Json, Threads, make_app, run_app
from bilevel_apps.errors import RunError
from bilevel_apps.paper.harness.item import Scale
from bilevel_apps.paper.harness.registry import ITEMS, load_item

if TYPE_CHECKING:
    from bilevel_apps.paper.harness.item import Report

HELP = """Compute the paper's tables and figures and say what the paper says beside them.

Each item writes to --out, whole or not at all, with NAME for its own name:

\b
NAME.md             the paper's row, ours, intervals, claims, settings, cost, what differs
NAME.png, NAME.svg  the picture
NAME.csv            the table with every digit; NAME-details.csv what it is made of
NAME.json           all of it for programs

--scale quick takes seconds to minutes and shows the claims; full has the paper's sizes where it
gives them, and more data sets and hyper-iterations. What is done is kept in NAME/SCALE, a file a
part, and not done again. Table 2 and figures 3 and 4 show the same runs, which are computed once
and kept in effect-of-t/SCALE. A claim that does not hold ends the command with status 1, after the
files are written. Runs are logged to MLflow, by default in mlflow.db beside --out. all computes
everything, and a page that shows it: all.md.

Items about pictures take stores with --data; each finds those of the data sets that it is about.
Tables 3 and 4 and figure 6 train networks: every cell is a run in NAME/SCALE/CELL-seed-N, as
bilevel-train makes them, and goes on where it was stopped. --only CELL computes one of them, --set
KEY=VALUE changes what is trained (the same budget for all: --set train.minutes=60), and
--run CELL=DIR takes a run that there is already. Cells of table 3 are named as the presets; those
with paper/ before have the paper's own settings.

Example:

  bilevel-paper table5 --out runs/paper

  bilevel-paper all --data omniglot.h5 --out runs/paper

  bilevel-paper table3 --data omniglot.h5 --scale full --only omniglot-5way-1shot --out runs/paper
"""

app = make_app(HELP)


@app.command("list")
def list_(debug: Debug = False) -> None:
    """List the tables and figures."""
    del debug
    width = max(map(len, ITEMS))
    for name, title in ITEMS.items():
        print(f"{name:{width}}  {title}")


Out = Annotated[Path, typer.Option(metavar="DIR", help="Where to write.")]
Sized = Annotated[Scale, typer.Option(help="How much to compute.")]
Stores = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE.h5", help="A store of bilevel-data; repeat it for several data sets."
    ),
]
Tracked = Annotated[bool, typer.Option("--track/--no-track", help="Log to MLflow, or do not.")]


@app.command("all")
def all_(
    out: Out,
    scale: Sized = Scale.QUICK,
    data: Stores = None,
    track: Tracked = True,
    threads: Threads = 1,
    debug: Debug = False,
) -> None:
    """Compute all of them, one after another, and a page with every picture and claim: all.md."""
    del debug
    from bilevel_apps.paper.harness.make import ItemRequest
    from bilevel_apps.paper.harness.overview import PAGE, run_all
    from bilevel_apps.paper.harness.render import as_lines
    from bilevel_apps.system.hardware import set_threads

    set_threads(threads)
    request = ItemRequest(out=out, scale=scale, data=tuple(data or ()), track=track)
    outcomes = run_all(map(load_item, ITEMS), request)
    print("\n".join(as_lines([outcome.row() for outcome in outcomes])))
    print(f"in {out}: {PAGE}")
    wrong = [outcome.item.name for outcome in outcomes if not outcome.holds]
    if wrong:
        raise RunError(f"{', '.join(wrong)}: failed, or a claim did not hold: see {PAGE}")


def _command(name: str) -> Callable[..., None]:
    def command(
        out: Out,
        scale: Sized = Scale.QUICK,
        seeds: Annotated[
            int | None, typer.Option(min=1, help="Data sets; by default as many as the scale has.")
        ] = None,
        data: Stores = None,
        only: Annotated[
            list[str] | None,
            typer.Option(metavar="PART", help="Compute this part alone; may be repeated."),
        ] = None,
        assignments: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of what is trained."),
        ] = None,
        runs: Annotated[
            list[str] | None,
            typer.Option(
                "--run",
                metavar="[PART=]DIR",
                help="A run, or pretrained:TAG, to take in the place of training one.",
            ),
        ] = None,
        track: Tracked = True,
        threads: Threads = 1,
        as_json: Json = False,
        debug: Debug = False,
    ) -> None:
        del debug
        from bilevel_apps.paper.harness.make import ItemRequest, run_item
        from bilevel_apps.system.hardware import set_threads

        set_threads(threads)
        request = ItemRequest(
            out=out,
            scale=scale,
            seeds=seeds,
            track=track,
            data=tuple(data or ()),
            only=tuple(only or ()),
            assignments=tuple(assignments or ()),
            runs=tuple(runs or ()),
        )
        report, document = run_item(load_item(name), request)
        _print(report, document, as_json=as_json)

    return command


for _name, _title in ITEMS.items():
    _help = f"{_title[0].upper()}{_title[1:]}."
    app.command(_name, help=_help)(_command(_name))


def _print(report: Report, document: dict[str, Any], *, as_json: bool) -> None:
    """Print the table and the claims, and fail where a claim does."""
    from bilevel_apps.paper.harness.render import as_lines, claim_line

    if as_json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        print("\n".join(as_lines(report.rows)))
        for claim in report.claims:
            print(claim_line(claim))
        names = [Path(path).name for path in document["files"]]
        print(f"in {Path(document['files'][0]).parent}: {', '.join(names)}")
    failed = [claim.text for claim in report.claims if not claim.holds]
    if failed:
        count = f"{len(failed)} of {len(report.claims)} claims"
        raise RunError(f"{count} did not hold: {'; '.join(failed)}: see {document['item']}.md")


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
