"""`bilevel-export`: a run as a program that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilevel_apps.cli.common import Debug, Trained, make_app, run_app

HELP = """Export a run for programs that do not have this package.

FILE.pt2 is a torch.export program: support images, their labels and query images in, probabilities
out. Any number of support images and queries; the number of classes is fixed. It is written once
what the file holds gives the run's own answers to 1e-5.

FILE.onnx is the same as ONNX, for onnxruntime and others; it needs bilevel-apps[onnx].

torch.export.load may unpickle, and so run, what a .pt2 file holds: load files that you trust. What
this command writes holds no pickle.

Example: bilevel-export runs/omniglot --way 5 --out omniglot.pt2
"""

app = make_app(HELP)


@app.command(help=HELP)
def export(
    trained: Trained,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.pt2|FILE.onnx", help="The file to write; its ending says the format."
        ),
    ],
    way: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Classes; by default the run's.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Export, and say what was written."""
    del debug
    from bilevel_apps.predict.export import export_run

    found = export_run(trained, out, way=way)
    print(f"wrote {found.path}: {found.way} classes, within {found.difference:.1g} of the run")


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
