"""`bilevel-tune`: hyperparameter optimisation of any problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilevel_apps.cli.common import Debug, Json, Threads, make_app, run_app
from bilevel_apps.errors import InputError
from bilevel_apps.system.tables import aligned
from bilevel_apps.tune.engine_names import ENGINES, ONLINE, engine_named
from bilevel_apps.tune.target import EXAMPLES, load_tuning

if TYPE_CHECKING:
    from bilevel_apps.tune import Tuning


def _examples() -> str:
    return "\n".join(f"{name:12} {line}" for name, line in EXAMPLES.items())


HELP = f"""Tune hyperparameters by their hypergradient.

PROBLEM is MODULE:NAME or FILE.py:NAME, where NAME is a bilevel_apps.tune.Tuning or a function that
returns one; modules are also found in the current directory. Or it is a built-in example, on data
that installs with scikit-learn:

\b
{_examples()}

The hyperparameters are chosen by the outer objective, on validation data; figures on test data are
only printed. OUT holds history.json, hyperparameters.safetensors, figures.json and history.png.
Ctrl-C ends the run and keeps what was reached. The run is logged to MLflow, by default in mlflow.db
beside OUT.

Example:

  bilevel-tune digits --set seed=1

  bilevel-tune my_problem.py:ridge --engine implicit --outer-steps 50

Engines: {", ".join(ENGINES)}, {ONLINE}; with a number: truncated:K (the last K steps),
checkpointed:N (states in memory), forward:N (hyperparameters at once).
"""

app = make_app(HELP)


@app.command(help=HELP)
def tune(
    problem: Annotated[str | None, typer.Argument(metavar="PROBLEM", help="What to tune.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the built-in examples.")] = False,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another engine than the problem's.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="T, inner steps.")] = None,
    outer_steps: Annotated[int | None, typer.Option(min=1, help="Hyper-iterations.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An argument of the function; may be repeated."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="OUT", help="A folder; by default runs/tune-NAME-1, …")
    ] = None,
    threads: Threads = 1,
    no_track: Annotated[bool, typer.Option("--no-track", help="Do not log to MLflow.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the problem, tune it, print the figures."""
    del debug
    if listed:
        print(_examples())
        return
    if problem is None:
        raise InputError(f"nothing to tune: give MODULE:NAME or one of {', '.join(EXAMPLES)}")
    from bilevel_apps.system.hardware import set_threads

    set_threads(threads)
    chosen = _changed(load_tuning(problem, assignments or []), engine, steps, outer_steps)
    from bilevel_apps.tune.tune import TuneRequest
    from bilevel_apps.tune.tune import tune as run_tuning

    name = problem.rpartition(":")[2]
    settings = dict(assignment.split("=", 1) for assignment in assignments or [])
    request = TuneRequest(name=name, out=out, settings=settings, track=not no_track)
    document = run_tuning(chosen, request)
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        _print(document["figures"])
        print(
            f"in {document['folder']}: history.json, hyperparameters.safetensors, figures.json, "
            "history.png"
        )


def _changed(
    tuning: Tuning, engine: str | None, steps: int | None, outer_steps: int | None
) -> Tuning:
    changes: dict[str, Any] = {}
    if engine == ONLINE:
        changes["online"] = True
    elif engine is not None:
        changes |= {"online": False, "engine": engine_named(engine)}
    if steps is not None:
        changes["steps"] = steps
    if outer_steps is not None:
        if changes.get("online", tuning.online):
            raise InputError(
                f"--outer-steps {outer_steps}: an online run updates during its one inner run: "
                "change --steps, or take another --engine"
            )
        changes["outer_steps"] = outer_steps
    try:
        return replace(tuning, **changes)
    except (TypeError, ValueError) as error:
        options = "--engine, --steps and --outer-steps"
        raise InputError(f"{error}: this tuning cannot be so: change {options}") from error


def _print(rows: Mapping[str, Mapping[str, float]]) -> None:
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    lines = [["", *columns]]
    for row, figures in rows.items():
        lines.append([row, *(f"{figures[c]:.4g}" if c in figures else "" for c in columns)])
    print(*aligned(lines, right=True), sep="\n")


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
