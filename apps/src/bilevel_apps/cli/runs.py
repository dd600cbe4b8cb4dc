"""`bilevel-runs`: list runs, compare them, and open MLflow's interface."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilevel_apps.cli.common import Debug, Device, Query, Seed, Shot, make_app, run_app
from bilevel_apps.compare.table import Format
from bilevel_apps.errors import InputError

if TYPE_CHECKING:
    from bilevel_apps.compare import TrackedRun

HELP = """Runs side by side, from the database that training logs to.

By default the database is MLFLOW_TRACKING_URI, or runs/mlflow.db, or mlflow.db.
"""

app = make_app(HELP)

Uri = Annotated[
    str | None,
    typer.Option(metavar="FILE.db|URI", help="A database of MLflow, or the address of a server."),
]
Experiment = Annotated[str | None, typer.Option(metavar="NAME", help="Of this experiment alone.")]
Form = Annotated[Format, typer.Option("--format", help="How to print the table.")]


@app.command("list")
def list_(
    uri: Uri = None,
    experiment: Experiment = None,
    form: Form = Format.TEXT,
    debug: Debug = False,
) -> None:
    """List the runs, the latest first; the accuracy is that of the best checkpoint."""
    del debug
    from bilevel_apps.compare import list_runs, read_runs
    from bilevel_apps.compare.database import find_uri

    found = read_runs(find_uri(uri), experiment)
    if not found:
        raise InputError("no runs yet: train one with bilevel-train")
    print(list_runs(found).render(form))


@app.command()
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Folders, pretrained:TAG, names, or beginnings of ids; none stands for all of the "
            "experiment.",
        ),
    ] = None,
    uri: Uri = None,
    experiment: Experiment = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="A metric, highest first, or a parameter; else as given, or by val/accuracy.",
        ),
    ] = None,
    form: Form = Format.TEXT,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.h5", help="Another store than the first run's.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the episodes that all are scored on.")] = "val",
    episodes: Annotated[
        int, typer.Option(min=0, help="How many; 0 shows only what MLflow has.")
    ] = 200,
    way: Annotated[int | None, typer.Option(min=2, help="Classes an episode.")] = None,
    shot: Shot = None,
    query: Query = None,
    seed: Seed = 0,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Compare runs: the parameters that differ, the metrics, and the same episodes for all.

    The difference to the first run is taken episode by episode, which makes its interval narrower
    than those of the two scores. Way, shot and query are the first run's unless they are given.

    Example: bilevel-runs compare runs/a runs/b --format markdown
    """
    del debug
    from bilevel_apps.compare import CompareRequest, compare_runs
    from bilevel_apps.compare.compare import USUAL_SORT
    from bilevel_apps.compare.paired import EpisodeChoice

    chosen = _chosen(runs or [], uri, experiment)
    wanted = EpisodeChoice(
        data=data,
        split=split,
        count=episodes,
        way=way,
        shot=shot,
        query=query,
        seed=seed,
        device=device,
    )
    order = USUAL_SORT if sort is None and not runs else sort
    request = CompareRequest(sort=order, episodes=wanted if episodes else None)
    table, note = compare_runs(chosen, request)
    print(table.render(form))
    if note and form is not Format.CSV:
        print(f"\n{note}")


def _chosen(words: list[str], uri: str | None, experiment: str | None) -> list[TrackedRun]:
    from bilevel_apps.compare import read_runs
    from bilevel_apps.compare.database import find_uri
    from bilevel_apps.compare.select import choose_runs

    if words:
        given = None if uri is None else find_uri(uri)
        return choose_runs(words, lambda: read_runs(find_uri(uri), experiment), given)
    found = read_runs(find_uri(uri), experiment)
    if not found:
        raise InputError("no runs yet: train one with bilevel-train")
    return found


@app.command()
def ui(
    uri: Uri = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes a free one.")
    ] = 5000,
    debug: Debug = False,
) -> None:
    """Open MLflow's interface to this machine alone, until Ctrl-C."""
    del debug
    from bilevel_apps.compare.database import find_uri
    from bilevel_apps.compare.ui import serve
    from bilevel_apps.system.terminal import say

    found = find_uri(uri)
    say("starting MLflow, which takes some seconds …")
    serve(found, port, tell=lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True))


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
