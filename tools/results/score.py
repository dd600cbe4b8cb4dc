"""From a run to the record of its score."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from bilevel_apps.config import TrackingSection
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.evaluate.report import EvaluationReport
from bilevel_apps.paper.published import published_accuracy
from bilevel_apps.paper.trained.cells import validations
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.load import load_run
from bilevel_apps.runs.pretrained import pretrained_tag
from bilevel_apps.runs.record import read_record
from bilevel_apps.system.machine import machine_name, versions
from tools.publish.weights import command_of
from tools.results.records import FORMAT, ScoreRecord, Upright

__all__ = ["score_record"]

KEPT = ("way", "shot", "query", "split", "overlap", "rotations", "seed", "shifts", "norm")


def score_record(
    folder: Path,
    request: EvaluationRequest,
    *,
    machine: str | None = None,
    seconds: float | None = None,
) -> ScoreRecord:
    """Evaluate a run and return the record of it.

    The training's seconds are those that its checkpoint or the tracker knows of.

    Args:
        folder: the run's.
        request: what is scored; several T or η, `choose` and `track` are left out.
        machine: that of the training; None stands for this one.
        seconds: of the training, where neither its checkpoint nor the tracker knows of them.

    Raises:
        InputError: the run, the store and the numbers do not fit together, or the folder is none.
        RunError: the inner runs diverge.
    """
    if pretrained_tag(folder) is not None:
        raise InputError(f"{folder}: a record is of a training: give the folder of the run")
    run = load_run(folder, request.device)
    report = evaluate_run(folder, replace(request, choose=False, track=False))
    data = run.store(request.data).manifest.name
    files = RunFolder(folder)
    last = read_record(load_checkpoint(files.last), files.last) if files.last.exists() else None
    curve = validations(files)
    known = last.seconds if last is not None else None
    neutral = {"data": None, "device": "auto", "threads": None, "tracking": TrackingSection()}
    environment = read_record(load_checkpoint(run.path), run.path).environment
    upright = report.upright
    return ScoreRecord(
        format=FORMAT,
        data=data,
        network=run.config.model.name,
        **{key: getattr(report, key) for key in KEPT},
        episodes=report.score.episodes,
        accuracy=report.score.accuracy,
        ci95=report.score.ci95,
        upright=upright and Upright(accuracy=upright.accuracy, ci95=upright.ci95),
        transductive=report.norm == "episode",
        steps=report.inner.steps,
        lr=report.inner.lr,
        paper=published_accuracy(data, run.config.model.name, report.way, report.shot),
        train=command_of(run.config.model_copy(update=neutral), data),
        evaluate=_evaluation(data, request, report),
        training_seed=run.config.seed,
        hyper_iterations=None if last is None else last.step,
        chosen_at=run.step,
        seconds=known if known is not None else (curve[-1][1] if curve else seconds),
        machine=machine or machine_name(environment.device, environment.threads),
        versions=versions(environment.python, environment.torch, environment.bilevel),
        checkpoint_sha256=run.sha256,
        split_sha256=report.split_sha256,
    )


def _evaluation(data: str, request: EvaluationRequest, report: EvaluationReport) -> str:
    """Return the command of a score, with T and η where they are not those of the training."""
    words = ["bilevel-eval", "DIR", "--data", shlex.quote(f"{data}.h5"), "--split", request.split]
    words += ["--episodes", str(request.episodes), "--seed", str(request.seed)]
    for name in ("way", "shot", "query", "norm"):
        value = getattr(request, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--overlap"] * request.overlap
    words += ["--shifts", str(request.shifts)] if request.shifts else []
    for option, name in (("--steps", "steps"), ("--lr", "lr")):
        own, trained = getattr(report.inner, name), getattr(report.trained_inner, name)
        if getattr(request, name) or own != trained:
            words += [option, f"{own:g}"]
    return " ".join(words)
