"""`python -m tools.results`: add a record, and make the tables of all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from bilevel_apps.cli.common import (
    Data,
    Debug,
    Device,
    EpisodeCount,
    Seed,
    Shifts,
    Shot,
    Split,
    Way,
    make_app,
    run_app,
)
from bilevel_apps.errors import RunError
from bilevel_apps.system.files import write_text

HELP = """Keep the recorded results, and the tables that are made of them.

add evaluates a run and writes the record of it; a document of bilevel-paper, NAME.json, is a record
as it is. write makes docs/results.md and the table in README.md from all records; check fails when
they are not what the records say.

Example:

  python -m tools.results add runs/omniglot --data omniglot.h5 --out docs/records/NAME.json

  python -m tools.results write
"""

app = make_app(HELP)
Records = Annotated[Path, typer.Option(metavar="DIR", help="Where the records are.")]
Page = Annotated[Path, typer.Option(metavar="FILE.md", help="The page of all results.")]
Readme = Annotated[Path, typer.Option(metavar="FILE.md", help="The file with the short table.")]


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of bilevel-train.")],
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="The record.")],
    data: Data = None,
    split: Split = "test",
    episodes: EpisodeCount = 600,
    way: Way = None,
    shot: Shot = None,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="Queries may be support images.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=0, help="Another T than the run's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Another η than the run's.")] = None,
    norm: Annotated[str | None, typer.Option(help="Another normalisation than the run's.")] = None,
    shifts: Shifts = 0,
    seed: Seed = 0,
    machine: Annotated[
        str | None, typer.Option(help="That of the training, if it was not this one.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Of the training, if nothing recorded them.")
    ] = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Evaluate a run and write the record of it."""
    del debug
    from bilevel_apps.evaluate.evaluate import EvaluationRequest
    from tools.results.score import score_record

    request = EvaluationRequest(
        data=data,
        split=split,
        episodes=episodes,
        way=way,
        shot=shot,
        overlap=overlap,
        steps=() if steps is None else (steps,),
        lr=() if lr is None else (lr,),
        norm=norm,
        shifts=shifts,
        seed=seed,
        device=device,
    )
    record = score_record(folder, request, machine=machine, seconds=seconds)
    write_text(out, record.model_dump_json(indent=2) + "\n")
    print(f"{100 * record.accuracy:.2f} ± {100 * record.ci95:.2f} % in {out}")


def _of_tables(act: Callable[[Path, str, Path], None]) -> Callable[[Path, str, Path], None]:
    """Make a command of what is done to each file with tables: its path, its text, the records."""

    def command(
        records: Records = Path("docs/records"),
        page: Page = Path("docs/results.md"),
        readme: Readme = Path("README.md"),
        debug: Debug = False,
    ) -> None:
        del debug
        for path, text in _made(records, page, readme).items():
            act(path, text, records)

    app.command(act.__name__, help=act.__doc__)(command)
    return act


@_of_tables
def write(path: Path, text: str, _records: Path) -> None:
    """Make the page and the short table from the records."""
    write_text(path, text)
    print(path)


@_of_tables
def check(path: Path, text: str, records: Path) -> None:
    """Fail when the page or the short table is not what the records say."""
    if not path.exists() or path.read_text("utf-8") != text:
        raise RunError(f"{path}: is not what {records} says: run python -m tools.results write")


def _made(records: Path, page: Path, readme: Path) -> dict[Path, str]:
    from tools.results import read_records, results_page, with_table

    found = read_records(records)
    return {
        page: results_page(found, records.name),
        readme: with_table(readme.read_text("utf-8"), found, readme),
    }


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
