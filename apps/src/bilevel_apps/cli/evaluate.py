"""`bilevel-eval`: accuracy of a run on fixed episodes of a split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevel_apps.cli.common import Debug, Device, Track, make_app, run_app

HELP = """Evaluate a run: accuracy ± 95 % interval over fixed episodes of a split.

The heads of each episode are trained from zero on its support images, with the run's T inner steps,
and scored on its query images. Episode i of a seed is the same for every model.

Where rotated copies count as classes, the accuracy on upright classes alone is printed too.

Example: bilevel-eval runs/omniglot --split test --episodes 600
"""

app = make_app(HELP)


@app.command(help=HELP)
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of bilevel-train.")],
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.h5", help="Another store than the run's.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 600,
    way: Annotated[int | None, typer.Option(min=1, help="Classes an episode.")] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Support images a class.")] = None,
    query: Annotated[int | None, typer.Option(min=1, help="Query images a class.")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="T, inner steps.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which episodes.")] = 0,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="Also raw-pixel nearest neighbour and an untrained network."
        ),
    ] = False,
    track: Track = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Load the run, score it, print."""
    del debug
    from bilevel_apps.evaluate import Request, evaluate_run

    request = Request(
        data=data,
        split=split,
        episodes=episodes,
        way=way,
        shot=shot,
        query=query,
        steps=steps,
        seed=seed,
        baselines=baselines,
        track=track,
        device=device,
    )
    report = evaluate_run(folder, request)
    if as_json:
        print(json.dumps(report))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['way']}-way {report['shot']}-shot, {report['episodes']} episodes of "
        f"{report['split']}, T = {report['steps']}, {report['norm']} normalisation"
    )
    classes = "upright and rotated classes" if "upright" in report else "accuracy"
    rows = {classes: report}
    if "upright" in report:
        rows["upright classes alone"] = report["upright"]
    for name, row in report.get("baselines", {}).items():
        rows[f"baseline: {name}"] = row
    for name, row in rows.items():
        print(f"  {name:38} {100 * row['accuracy']:6.2f} ± {100 * row['ci95']:.2f} %")


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
