"""`bilevel-predict`: labels for one's own pictures, from a few labelled ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilevel_apps.cli.common import (
    Debug,
    Device,
    Shifts,
    Steps,
    Trained,
    make_app,
    run_app,
    steps_of,
)
from bilevel_apps.errors import InputError

if TYPE_CHECKING:
    from bilevel_apps.predict.predict import Prediction

HELP = """Label pictures of your own, from a few labelled ones.

FOLDER holds a directory a class, each with one or more pictures (PNG, JPEG, BMP, GIF, WebP; any
size). A head is trained on them as the run's were, or as --steps and --lr say, and labels the
queries.
Pictures are prepared as the run's data set was: cropped to a square or not, its size, grey or
colour; dark ink on white paper where the run learned from drawings.

Each query is labelled by itself: alone it gets the same answer as among others.

Without a run of your own, pretrained:omniglot-5way-1shot takes its place: weights for drawings,
which come with the package.

Example: bilevel-predict runs/omniglot --support letters --query new --picture result.png
"""

app = make_app(HELP)


@app.command(help=HELP)
def predict(
    trained: Trained,
    support: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Labelled pictures, a directory a class.")
    ],
    query: Annotated[
        Path, typer.Option(metavar="FILE_OR_FOLDER", help="A picture, or a folder of pictures.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.h5",
            help="A store made as the run's, if neither checkpoint nor run says how it was made.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the result here.")
    ] = None,
    ink: Annotated[
        str,
        typer.Option(
            metavar="auto|bright|dark|keep|invert",
            help="Where the run learned from drawings: the ink of these, told from their borders "
            "by default; keep and invert do not look.",
        ),
    ] = "auto",
    shifts: Shifts = 0,
    steps: Steps = None,
    lr: Annotated[
        float | None, typer.Option(metavar="η", help="Inner step size; else the run's own.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=10, help="Labels shown of each query.")] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with all probabilities.")
    ] = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Read the pictures, label them, print."""
    del debug
    if lr is not None and not 0 < lr < math.inf:
        raise InputError(f"--lr {lr:g}: expected a number > 0, such as 0.1")
    from bilevel_apps.predict.predict import PredictRequest, as_document, predict_pictures

    request = PredictRequest(
        support=support,
        query=query,
        data=data,
        picture=picture,
        top=top,
        ink=ink,
        shifts=shifts,
        steps=() if steps is None else steps_of(steps),
        lr=lr,
        device=device,
    )
    prediction = predict_pictures(trained, request)
    if as_json:
        print(json.dumps(as_document(prediction)))
        return
    _print(prediction, top)
    if prediction.pages:
        print(f"wrote {', '.join(map(str, prediction.pages))}")


def _print(prediction: Prediction, top: int) -> None:
    run, count = prediction.run, len(prediction.support_images)
    print(
        f"{len(prediction.labels)} classes from {count} pictures, {prediction.inner}, "
        f"{run.config.model.norm} normalisation"
        + f", features over shifts of {run.shifts} px"
        * bool(run.shifts)
    )
    files = [_printable(file.name) for file in prediction.query]
    labels = [_printable(name) for name in prediction.labels]
    wide, broad = max(5, *map(len, files)), max(5, *map(len, labels))
    following = "  next" if top > 1 else ""
    print(f"  {'query':{wide}}  {'label':{broad}}  probability{following}")
    for row, file in enumerate(files):
        (label, p), *others = prediction.ranked(row)[:top]
        rest = ", ".join(f"{_printable(name)} {100 * q:.1f} %" for name, q in others)
        line = f"  {file:{wide}}  {_printable(label):{broad}}  {100 * p:9.1f} %  {rest}"
        print(line.rstrip())


def _printable(name: str) -> str:
    """Return a name that cannot steer a terminal."""
    return name if name.isprintable() else ascii(name)


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
