"""`bilevel-eval`: accuracy of a run on fixed episodes of a split."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevel_apps.cli.common import (
    Data,
    Debug,
    Device,
    EpisodeCount,
    Json,
    Query,
    Run,
    Seed,
    Shifts,
    Shot,
    Split,
    Track,
    Way,
    make_app,
    run_app,
    steps_of,
)
from bilevel_apps.errors import InputError

HELP = """Evaluate a run: accuracy ± 95 % interval over fixed episodes of a split.

The heads of each episode are made from its support images as the run's were in training, at the
optimum of their inner problem or by T steps of size η from zero, and scored on its query images.
Episode i of a seed is the same for every model. The error of calibration says how far probabilities
are from the share of right answers.

Where rotated copies count as classes, the accuracy on upright classes alone is printed too.

With several T or η, such as --steps 1,3,5,8,12,20, it prints and draws the accuracy at each, on the
same episodes, and its difference to the run's own. --choose makes the best one the run's own, for
later commands: DIR/chosen.json says so, and deleting that file undoes it. The optimum of a run that
was trained with T steps takes numbers that are estimated on its training and validation classes.

A step size that was learned for one image a class is too large for several: there a smaller one
with more steps is more accurate.

Example:

  bilevel-eval runs/omniglot --split val --steps 1,3,5,8,12,20,optimum --choose

  bilevel-eval runs/omniglot --split test --episodes 600

  bilevel-eval runs/omniglot --split val --shot 5 --steps 1,5,50 --lr 0.005,0.02,0.1,0.5
"""

app = make_app(HELP)


@app.command(help=HELP)
def evaluate(
    folder: Run,
    data: Data = None,
    split: Split = "test",
    episodes: EpisodeCount = 600,
    way: Way = None,
    shot: Shot = None,
    query: Query = None,
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap",
            help="Queries may be support images, as in the paper's loader: too high.",
        ),
    ] = False,
    norm: Annotated[
        str | None,
        typer.Option(help="episode (transductive), batch, ghost or support; else the run's own."),
    ] = None,
    shifts: Shifts = 0,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="T[,T…]|optimum",
            help="Inner steps, or the optimum; several give the accuracy at each.",
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(metavar="η[,η…]", help="Inner step size; several give the accuracy at each."),
    ] = None,
    choose: Annotated[
        bool,
        typer.Option("--choose", help="Make the best of several T and η the run's own (val only)."),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Picture of several; else DIR/steps-SPLIT.png."),
    ] = None,
    seed: Seed = 0,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="Also raw-pixel nearest neighbour and an untrained network."
        ),
    ] = False,
    track: Track = False,
    as_json: Json = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Load the run, score it, print."""
    del debug
    from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run

    request = EvaluationRequest(
        data=data,
        split=split,
        episodes=episodes,
        way=way,
        shot=shot,
        query=query,
        overlap=overlap,
        norm=norm,
        shifts=shifts,
        steps=() if steps is None else steps_of(steps),
        lr=() if lr is None else _sizes(lr),
        choose=choose,
        plot=plot,
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


def _sizes(text: str) -> tuple[float, ...]:
    """Return the η of `--lr`, each once, in order."""
    try:
        sizes = {float(word) for word in text.split(",")}
    except ValueError:
        sizes = set()
    if not sizes or not all(0 < size < math.inf for size in sizes):
        raise InputError(
            f"--lr {text}: expected numbers > 0 with commas between, such as 0.01,0.03,0.1"
        )
    return tuple(sorted(sizes))


def _print(report: dict[str, Any]) -> None:
    steps, trained = report["steps"], report["trained_steps"]
    at_optimum = "heads at their optimum"
    other_head = at_optimum if trained is None else f"T = {trained}" if steps is None else trained
    note = "" if steps == trained else f" (trained with {other_head})"
    lr, learned = report["lr"], report["trained_lr"]
    note += "" if lr == learned else f", η = {lr:.3g} ({learned:.3g} after training)"
    norm, trained_norm = report["norm"], report["trained_norm"]
    other = "" if norm == trained_norm else f" (trained with {trained_norm})"
    other += f", features over shifts of {report['shifts']} px" * bool(report["shifts"])
    other += ", queries may be support images" * report["overlap"]
    other += ", trained where they may" * report["trained_overlap"]
    print(
        f"{report['way']}-way {report['shot']}-shot, {report['episodes']} episodes of "
        f"{report['split']}, {report['head']}{note}, {norm} normalisation{other}; "
        f"{Path(report['checkpoint']).name} of hyper-iteration {report['checkpoint_step']}"
    )
    classes = "upright and rotated classes" if "upright" in report else "accuracy"
    rows = {classes: report}
    if "upright" in report:
        rows["upright classes alone"] = report["upright"]
    for name, row in report.get("baselines", {}).items():
        rows[f"baseline: {name}"] = row
    for name, row in rows.items():
        few = "" if row is report or "episodes" not in row else f" ({row['episodes']} episodes)"
        print(f"  {name:38} {_percent(row, 6)}{few}")
    print(f"  {'error of calibration':38} {100 * report['calibration_error']:6.2f} %")
    if "curve" in report:
        _print_curve(report)


def _print_curve(report: dict[str, Any]) -> None:
    from bilevel_apps.evaluate.curve import best_of
    from bilevel_meta.methods.hyper_representation import InnerLoop

    own = InnerLoop(report["steps"], report["lr"])
    best = best_of(report["curve"], own)
    several = len({row["lr"] for row in report["curve"]}) > 1
    name = "the optimum" if own.steps is None else f"T = {own.steps}"
    name += f", η = {own.lr:.3g}" if several else ""
    head = f"{'η':>8}  " if several else ""
    upright = "upright" in report
    alone = f"  {'upright alone':>16}" if upright else ""
    print(f"\n  {head}{'T':>5}  {'accuracy':>16}{alone}  {f'difference to {name}':>22}")
    for row in report["curve"]:
        at = (f"{row['lr']:8.3g}  " if several else "") + f"{_steps_of(row):>5}"
        if row["accuracy"] is None:
            print(f"  {at}  {'diverges':>16}")
            continue
        same = (row["steps"], row["lr"]) == own
        paired = "" if same else _percent(row["difference"], 6, "+")
        mark = "  best" if row is best else ""
        alone = f"  {_upright(row):>16}" if upright else ""
        print(f"  {at}  {_percent(row, 6):>16}{alone}  {paired:>22}{mark}".rstrip())
    if "picture" in report:
        print(f"\nwrote {report['picture']}")
    if "chosen" in report:
        from bilevel_apps.runs.chosen_inner import ChosenInner

        print(f"{ChosenInner(**report['chosen'])} is the run's own now: chosen.json keeps it")


def _upright(row: dict[str, Any]) -> str:
    return _percent(row["upright"], 6) if "upright" in row else "diverges"


def _steps_of(row: dict[str, Any]) -> str:
    return "∞" if row["steps"] is None else str(row["steps"])


def _percent(row: dict[str, Any], width: int, sign: str = "") -> str:
    return f"{100 * row['accuracy']:{sign}{width}.2f} ± {100 * row['ci95']:.2f} %"


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
