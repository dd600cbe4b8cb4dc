"""`bilevel-eval`: accuracy of a run on fixed episodes of a split."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from bilevel_apps.evaluate.report import CurvePoint, EvaluationReport
    from bilevel_apps.scoring.score import Score

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

--calibrate estimates these numbers for a run that was trained at the optimum: what its training
learned knows the training classes, and can be too sure of others.

A step size that was learned for one image a class is too large for several: there a smaller one
with more steps is more accurate.

Example:

  bilevel-eval runs/omniglot --split val --steps 1,3,5,8,12,20,optimum --choose

  bilevel-eval runs/photos --split val --calibrate

  bilevel-eval runs/omniglot --split test --episodes 600

  bilevel-eval runs/omniglot --split val --shot 5 --steps 1,5,50 --lr 0.005,0.02,0.1,0.5
"""

MISCALIBRATED = 0.05
"""An error from which on a line says what to do."""

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
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Make heads as sure of new classes as they are right (val only)."
        ),
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
        calibrate=calibrate,
        plot=plot,
        seed=seed,
        baselines=baselines,
        track=track,
        device=device,
    )
    report = evaluate_run(folder, request)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        _print(report)
        if _could_be_calibrated(report) and not str(folder).startswith("pretrained:"):
            again = f"bilevel-eval {folder} --split val --calibrate"
            print(f"probabilities are that far off; to fit them to new classes: {again}")


def _could_be_calibrated(report: EvaluationReport) -> bool:
    """Whether heads at their optimum, as they were trained, are wrong about themselves."""
    error, own, trained = report.calibration_error, report.inner.steps, report.trained_inner.steps
    learned = own is trained is None and not report.head.endswith("calibrated")
    return learned and (error or 0) > MISCALIBRATED


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


def _print(report: EvaluationReport) -> None:
    own, trained = report.inner, report.trained_inner
    other_head: object = "heads at their optimum"
    if trained.steps is not None:
        other_head = f"T = {trained.steps}" if own.steps is None else trained.steps
    note = "" if own.steps == trained.steps else f" (trained with {other_head})"
    note += "" if own.lr == trained.lr else f", η = {own.lr:.3g} ({trained.lr:.3g} after training)"
    other = "" if report.norm == report.trained_norm else f" (trained with {report.trained_norm})"
    other += f", features over shifts of {report.shifts} px" * bool(report.shifts)
    other += ", queries may be support images" * report.overlap
    other += ", trained where they may" * report.trained_overlap
    print(
        f"{report.way}-way {report.shot}-shot, {report.score.episodes} episodes of "
        f"{report.split}, {report.head}{note}, {report.norm} normalisation{other}; "
        f"{Path(report.checkpoint).name} of hyper-iteration {report.checkpoint_step}"
    )
    classes = "accuracy" if report.upright is None else "upright and rotated classes"
    rows = {classes: report.score}
    if report.upright is not None:
        rows["upright classes alone"] = report.upright
    for name, found in (report.baselines or {}).items():
        rows[f"baseline: {name}"] = found
    for name, found in rows.items():
        fewer = found.episodes != report.score.episodes
        few = f" ({found.episodes} episodes)" if fewer else ""
        print(f"  {name:38} {_percent(found, 6)}{few}")
    if report.calibration_error is not None:
        print(f"  {'error of calibration':38} {100 * report.calibration_error:6.2f} %")
    if report.curve:
        _print_curve(report)
    if report.picture is not None:
        print(f"\nwrote {report.picture}")
    if report.chosen is not None:
        print(f"{report.chosen} is the run's own now: chosen.json keeps it")


def _print_curve(report: EvaluationReport) -> None:
    from bilevel_apps.evaluate.curve import best_of

    own = report.inner
    best = best_of(report.curve, own)
    several = len({point.inner.lr for point in report.curve}) > 1
    name = "the optimum" if own.steps is None else f"T = {own.steps}"
    name += f", η = {own.lr:.3g}" if several else ""
    head = f"{'η':>8}  " if several else ""
    upright = report.upright is not None
    alone = f"  {'upright alone':>16}" if upright else ""
    print(f"\n  {head}{'T':>5}  {'accuracy':>16}{alone}  {f'difference to {name}':>22}")
    for point in report.curve:
        steps, lr = point.inner
        at = (f"{lr:8.3g}  " if several else "") + f"{'∞' if steps is None else steps:>5}"
        if point.score is None or point.difference is None:
            print(f"  {at}  {'diverges':>16}")
            continue
        paired = "" if point.inner == own else _percent(point.difference, 6, "+")
        mark = "  best" if point is best else ""
        alone = f"  {_upright(point):>16}" if upright else ""
        print(f"  {at}  {_percent(point.score, 6):>16}{alone}  {paired:>22}{mark}".rstrip())


def _upright(point: CurvePoint) -> str:
    return "diverges" if point.upright is None else _percent(point.upright, 6)


def _percent(found: Score, width: int, sign: str = "") -> str:
    return f"{100 * found.accuracy:{sign}{width}.2f} ± {100 * found.ci95:.2f} %"


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
