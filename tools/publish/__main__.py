"""`python -m tools.publish`: for developers, weights that come with bilevel-models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilevel_apps.cli.common import Debug, make_app, run_app

HELP = """Put a run's weights and their card into a folder, such as that of bilevel-models.

The card says what they are and how good they were measured to be. It takes the settings from the
checkpoint, the licence from the store, and the scores from reports of `bilevel-eval --json`; all of
them have to belong together.

Example:

\b
  bilevel-eval runs/omniglot --episodes 600 --json > 5way.json
  bilevel-eval runs/omniglot --episodes 600 --way 20 --json > 20way.json
  python -m tools.publish runs/omniglot --tag omniglot \\
      --report 5way.json --report 20way.json --out packages/models/src/bilevel_models/pretrained
"""

app = make_app(HELP)


@app.command(help=HELP, no_args_is_help=True)
def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of bilevel-train.")],
    tag: Annotated[str, typer.Option(help="Name of the weights: small letters, digits, hyphens.")],
    report: Annotated[
        list[Path], typer.Option(metavar="FILE.json", help="Of bilevel-eval --json; repeatable.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write both files.")],
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.h5", help="Another place of the run's store.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write both files, and say so."""
    del debug
    from tools.publish.weights import PublishRequest, publish_run

    for path in publish_run(folder, out, PublishRequest(tag=tag, reports=report, data=data)):
        print(f"wrote {path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
