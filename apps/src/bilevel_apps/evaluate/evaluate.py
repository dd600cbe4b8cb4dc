"""Score a run, and baselines, on the same episodes of a split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from bilevel_apps.errors import InputError, RunError
from bilevel_apps.evaluate.curve import best_of, by_steps, curve_of
from bilevel_apps.evaluate.curve_picture import draw_curve, picture_path
from bilevel_apps.evaluate.report import (
    CLASS_MEANS,
    NEAREST,
    RAW_PIXELS,
    REGRESSION,
    UNTRAINED,
    EvaluationReport,
)
from bilevel_apps.runs.build import make_learner
from bilevel_apps.runs.chosen_inner import ChosenInner, numbers_of, save_choice
from bilevel_apps.runs.load import TrainedRun, differently_prepared, load_run, steps_beyond
from bilevel_apps.runs.optimum import know_optimum
from bilevel_apps.runs.pretrained import pretrained_tag
from bilevel_apps.scoring.baselines import nearest_means, regressions
from bilevel_apps.scoring.feature_table import feature_table
from bilevel_apps.scoring.heads import HeadScores, encoded_episodes, head_scores
from bilevel_apps.scoring.score import Score, check_count, nearest_pixel, score, score_episodes
from bilevel_apps.system.terminal import progress_bar, warn
from bilevel_apps.tracking.run import CURVE, tracked_again
from bilevel_data import EpisodeSampler, Store
from bilevel_meta.adapt import far_from
from bilevel_meta.learner import HeadLearner, Learner
from bilevel_meta.methods.hyper_representation import HyperRepresentation, InnerLoop, inner_of
from bilevel_models import Normalization

__all__ = ["EvaluationRequest", "evaluate_run"]

CALIBRATION_EPISODES = 64
REGRESSIONS = 50  # episodes that scikit-learn sees: it takes one at a time


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to score; None stands for what the run was trained for.

    Attributes:
        overlap: query images may be support images too, as in the paper's released loader.
        norm: whose statistics normalise; `episode` gives the transductive figure.
        shifts: average each image's features over shifts by so many pixels; 0: over none.
        steps: T, or None for the optimum; () takes the run's own; several give the accuracy at
            each.
        lr: η; () takes the run's own; several give the accuracy at each.
        choose: make the best of several T and η the run's own.
        calibrate: estimate what fits heads to their optimum on the validation classes, in the place
            of what training learned of it, and make it the run's own.
        plot: a PNG file for the curve over several T or η; None takes one in the run's folder.
    """

    data: Path | None = None
    split: str = "test"
    episodes: int = 600
    way: int | None = None
    shot: int | None = None
    query: int | None = None
    overlap: bool = False
    norm: str | None = None
    shifts: int = 0
    steps: tuple[int | None, ...] = ()
    lr: tuple[float, ...] = ()
    choose: bool = False
    calibrate: bool = False
    plot: Path | None = None
    seed: int = 0
    baselines: bool = False
    track: bool = False
    device: str = "auto"


def evaluate_run(folder: Path, request: EvaluationRequest) -> EvaluationReport:
    """Return what a run comes to on the episodes that are asked for.

    Raises:
        InputError: the run, the store or the numbers do not fit together.
        RunError: the inner runs diverge, or a file cannot be written.
        bilevel_data.DataError: the store cannot be used, or has too few classes or images.
    """
    _check(folder, request)
    run = _normalised(load_run(folder, request.device), request.norm).over_shifts(request.shifts)
    if None in request.steps:
        know_optimum(run, request.data)
    if request.calibrate:
        run = _calibrated(run, request)
    store = run.store(request.data)
    run = run.for_store(store)
    if (request.steps or request.lr) and not isinstance(run.learner, HyperRepresentation):
        raise InputError(
            f"`steps`, `lr`: {run.config.method} has no head whose T and η could be others: leave "
            "them out, or train with other options"
        )
    for option, asked in (*_keeping(request), ("`track`", request.track)):
        if asked:
            _check_images(option, request.split, run, store)
    sampler = run.sampler(
        store,
        request.split,
        seed=request.seed,
        rotations=run.counts_rotations(store, request.split),
        way=request.way,
        shot=request.shot,
        query=request.query,
        overlap=request.overlap,
    )
    if line := differently_prepared(run, store, sampler.split):
        warn(line)
    if line := steps_beyond(run, request.steps, request.lr):
        warn(line)
    picture = picture_path(folder, request.split, request.plot) if _several(request) else None
    report = _scored(run, store, sampler, request)
    if request.choose:
        report = replace(report, chosen=_keep(folder, report, _best(run, report)))
    if request.calibrate:
        report = replace(report, chosen=_keep(folder, report, _optimum_of(run)))
    if picture is not None:
        report = replace(report, picture=str(picture))
        draw_curve(picture, report)
    if request.track:
        _track(folder, report)
    return report


def _normalised(run: TrainedRun, norm: str | None) -> TrainedRun:
    """Return the run with other statistics than those it was trained for, if asked."""
    if norm is None:
        return run
    if norm not in list(Normalization):
        known = ", ".join(Normalization)
        raise InputError(f"`norm`={norm}: no such normalisation: choose one of {known}")
    try:
        return replace(run, learner=run.learner.varied(normalization=Normalization(norm)))
    except ValueError as error:
        raise InputError(f"`norm`={norm}: {error}") from None


def _calibrated(run: TrainedRun, request: EvaluationRequest) -> TrainedRun:
    """Return the run with a new estimate of what fits its heads to their optimum.

    Raises:
        InputError: its heads take T steps, or it has none.
    """
    if run.representation.solver is None:
        raise InputError(
            f"`calibrate`: the heads of this run are of {run.trained_inner}, and are as sure as "
            f"their step size makes them: compare `steps`={run.trained_inner.steps},optimum with "
            "`choose`"
        )
    know_optimum(run, request.data, again=True)
    return replace(run, calibrated=run.trained_inner.steps is None)


def _keeping(request: EvaluationRequest) -> tuple[tuple[str, bool], ...]:
    """Return the options that change what is kept beside a run, and which are asked for."""
    return ("`choose`", request.choose), ("`calibrate`", request.calibrate)


def _several(request: EvaluationRequest) -> bool:
    return len(request.steps) > 1 or len(request.lr) > 1


def _check(folder: Path, request: EvaluationRequest) -> None:
    """Refuse options that do not go together, before any work."""
    check_count(request.episodes)
    for name, given in _keeping(request):
        if given and pretrained_tag(folder) is not None:
            raise InputError(
                f"{name}: {folder} is part of the package, and its head is on its card"
            )
        if given and request.split != "val":
            raise InputError(
                f"{name} with `split`={request.split}: a head is chosen on the validation classes "
                "alone, or the test would no longer be one: give `split`=val"
            )
    if request.calibrate and (request.choose or request.steps or request.lr):
        raise InputError(
            "`calibrate` with `choose`, `steps` or `lr`: it is for the run's own heads at their "
            "optimum: leave the others out"
        )
    for name, given in (*_keeping(request), ("`track`", request.track)):
        if given and request.norm is not None:
            raise InputError(
                f"{name} with `norm`={request.norm}: what is kept of a run is with its own "
                "normalisation: leave one of them out"
            )
        if given and request.shifts:
            raise InputError(
                f"{name} with `shifts`={request.shifts}: what is kept of a run is with "
                "pictures as they are: leave one of them out"
            )
        if given and request.overlap:
            raise InputError(
                f"{name} with `overlap`: accuracies on images that were seen are too high to be "
                "kept of a run: leave one of them out"
            )
    for option, numbers in (("`steps`", request.steps), ("`lr`", request.lr)):
        if request.track and len(numbers) == 1:
            number = "optimum" if numbers[0] is None else f"{numbers[0]:g}"
            raise InputError(
                f"`track` with {option}={number}: what is kept of a run is with its own T "
                "and η: leave one of them out, or give several, for the curve"
            )
    for name, given in (("`choose`", request.choose), ("`plot`", request.plot is not None)):
        if given and not _several(request):
            raise InputError(f"{name}: give several T or η to compare, such as `steps`=1,3,5,8,12")


def _check_images(option: str, split: str, run: TrainedRun, store: Store) -> None:
    """Refuse to keep of a run what it comes to on another store's images."""
    info = store.manifest.splits.get(split)
    if info is not None and info.sha256 != run.data.get(split):
        raise InputError(
            f"{store.path}: its images of {split} are not those of the run's own store: give that "
            f"one, or leave {option} out"
        )


def _scored(
    run: TrainedRun, store: Store, sampler: EpisodeSampler, request: EvaluationRequest
) -> EvaluationReport:
    spec = sampler.spec
    own = _own(run, request)
    jobs = [(sampler, _loops(own, request))]
    if sampler.rotations and spec.way <= sampler.split.num_classes:
        jobs.append((replace(sampler, rotations=False), jobs[0][1]))
    found = _measured("evaluating", run.learner, jobs, run, request)
    if line := far_from(_mean(found[0].surprise), str(run.path), run.step):
        warn(line)
    return EvaluationReport(
        score=_sound("evaluating", found[0], own),
        calibration_error=found[0].calibration[own].error,
        head=f"{own}{', calibrated' if run.calibrated and own.steps is None else ''}",
        way=spec.way,
        shot=spec.shot,
        query=spec.query,
        overlap=sampler.overlap,
        trained_overlap=run.config.train.overlap,
        inner=own,
        norm=str(run.learner.normalization),
        shifts=run.shifts,
        trained_norm=run.config.model.norm,
        split=request.split,
        split_sha256=store.manifest.splits[request.split].sha256,
        seed=request.seed,
        rotations=sampler.rotations,
        checkpoint=str(run.path),
        checkpoint_step=run.step,
        checkpoint_sha256=run.sha256,
        trained_inner=run.trained_inner,
        features=run.features,
        curve=curve_of(found[0], own, *found[1:]) if _several(request) else (),
        upright=_sound("upright", found[1], own) if len(found) > 1 else None,
        baselines=_baselines(own, sampler, store, run, request) if request.baselines else None,
    )


def _own(run: TrainedRun, request: EvaluationRequest) -> InnerLoop:
    """Return the run's own T and η, or those that are asked for in their place."""
    steps, lr = inner_of(run.learner)
    if len(request.steps) == 1:
        (steps,) = request.steps
    if len(request.lr) == 1:
        (lr,) = request.lr
    if request.lr and steps is None and set(request.steps) <= {None}:
        raise InputError(
            "`lr`: heads are solved to their optimum, which takes no steps: give T with "
            "`steps` too, or leave it out"
        )
    return InnerLoop(steps, lr)


def _loops(own: InnerLoop, request: EvaluationRequest) -> list[InnerLoop]:
    """Return every T with every η that is asked for, and the run's own."""
    # The own η is the exponential of a float32: nobody writes it to its last digit.
    lrs = [own.lr if math.isclose(lr, own.lr, rel_tol=1e-6) else lr for lr in request.lr]
    asked = itertools.product(request.steps or [own.steps], lrs or [own.lr])
    # The optimum has no step size: it is one, whatever η others take.
    loops = (InnerLoop(steps, own.lr if steps is None else lr) for steps, lr in asked)
    return sorted({own, *loops}, key=by_steps)


def _measured(
    what: str,
    task: Learner,
    jobs: Sequence[tuple[EpisodeSampler, Sequence[InnerLoop]]],
    run: TrainedRun,
    request: EvaluationRequest,
) -> list[HeadScores]:
    """Return the heads' scores on the episodes of each sampler; one bar over all."""
    episodes, device = request.episodes, run.device
    total = len(jobs) * episodes
    with progress_bar(what, total) as show:
        table = feature_table(
            task,
            [sampler for sampler, _ in jobs],
            episodes=episodes,
            device=device,
            progress=lambda share: show(int(share * total)),
        )
        found: list[HeadScores] = []
        for sampler, inner in jobs:
            before = len(found) * episodes if table is None else total
            found.append(
                head_scores(
                    task,
                    sampler,
                    inner=inner,
                    episodes=episodes,
                    device=device,
                    table=table,
                    progress=partial(_after, show, before, total),
                )
            )
    return found


def _after(show: Callable[[int], None], before: int, total: int, done: int) -> None:
    if before < total:  # with a table the bar is at its end, and the rest takes no time
        show(before + done)


def _sound(what: str, found: HeadScores, own: InnerLoop) -> Score:
    """Return the score at a T and η.

    Raises:
        RunError: the inner runs diverged.
    """
    if own in found.diverged:
        raise RunError(f"{what}: {found.diverged[own]}; or evaluate with a smaller `lr`")
    return score(found.accuracies[own])


def _baselines(
    own: InnerLoop,
    sampler: EpisodeSampler,
    store: Store,
    run: TrainedRun,
    request: EvaluationRequest,
) -> dict[str, Score]:
    """Return the scores, on the same episodes, of what needs no training.

    Nearest class mean and logistic regression are on the run's own features, the latter on the
    first episodes alone. The untrained network has the T and the normalisation that are asked for,
    and what else a training begins with.
    """
    nearest = score_episodes(nearest_pixel, sampler, episodes=request.episodes, device=run.device)
    by_features = _by_features(sampler, run, request)
    if run.features is not None:  # there is no network to be untrained
        return {NEAREST: nearest, **by_features}
    scores = {RAW_PIXELS: nearest, **by_features}
    fresh = make_learner(run.config, run.image_shape, run.device)
    untrained = fresh.varied(normalization=run.learner.normalization)
    try:
        _calibrate(untrained, store, run)
        unknown = getattr(untrained, "solver", None) is None
        steps = run.trained_inner.steps if own.steps is None and unknown else own.steps
        own = InnerLoop(steps, inner_of(untrained).lr)
        (found,) = _measured("untrained", untrained, [(sampler, [own])], run, request)
        scores[UNTRAINED] = _sound("untrained", found, own)
    except RunError as error:  # the run's own score is worth more than this one
        warn(f"no score of the untrained network: {error}")
    return scores


def _by_features(
    sampler: EpisodeSampler, run: TrainedRun, request: EvaluationRequest
) -> dict[str, Score]:
    """Return the scores of the baselines that see the run's features."""
    if not isinstance(run.learner, HeadLearner):  # its features change from episode to episode
        return {}
    few = min(request.episodes, REGRESSIONS)
    table = feature_table(run.learner, [sampler], episodes=request.episodes, device=run.device)
    batches = partial(encoded_episodes, run.learner, sampler, device=run.device, table=table)
    means = score(nearest_means(batches(request.episodes), sampler.spec.way))
    regression = score(regressions(batches(few)))
    return {CLASS_MEANS: means, REGRESSION: regression}


def _calibrate(untrained: Learner, store: Store, run: TrainedRun) -> None:
    """Let the running averages of fresh weights settle, so that the baseline is a fair one."""
    if "train" not in store.splits or not isinstance(untrained, HeadLearner):
        return
    rotations = bool(run.config.episode.rotations)
    sampler = run.sampler(store, "train", seed=run.config.seed, rotations=rotations)
    for index in range(CALIBRATION_EPISODES):
        batch = untrained.take(sampler.batch(index, 1))
        with torch.no_grad():
            support, _ = untrained.encoder(batch.support, batch.query, training=True)
        if isinstance(untrained, HyperRepresentation) and untrained.solver is not None:
            untrained.solver.track(support)


def _mean(values: NDArray[np.float64] | None) -> float | None:
    return None if values is None else float(values.mean())


def _best(run: TrainedRun, report: EvaluationReport) -> ChosenInner:
    """Return the best T and η of a curve."""
    best = best_of(report.curve, report.inner).inner
    learned = best.lr == run.trained_inner.lr
    if best.steps is None:
        as_trained = run.trained_inner.steps is None and not run.calibrated
        return ChosenInner() if as_trained else _optimum_of(run)
    return ChosenInner(best.steps, None if learned else best.lr)


def _optimum_of(run: TrainedRun) -> ChosenInner:
    solver = run.representation.solver
    return ChosenInner(optimum=None if solver is None else numbers_of(solver))


def _keep(folder: Path, report: EvaluationReport, chosen: ChosenInner) -> ChosenInner:
    """Make a choice the run's own."""
    kept = ("checkpoint_sha256", "split", "split_sha256", "episodes", "way", "shot", "query")
    basis = report.as_json()
    save_choice(folder, chosen, {key: basis.get(key) for key in (*kept, "seed", "curve")})
    return chosen


def _track(folder: Path, report: EvaluationReport) -> None:
    """Log the run's score in MLflow, under the split and the kind of episode, and its curve.

    After a choice it is that of the T and η that are the run's own now.
    """
    task = f"{report.split}/{report.way}way-{report.shot}shot"
    own, now = report.score, report.inner
    if report.chosen is not None and report.curve:
        best = best_of(report.curve, report.inner)
        own, now = best.score or own, best.inner
    values = {f"{task}/accuracy": own.accuracy, f"{task}/ci95": own.ci95}
    if report.upright is not None and now == report.inner:
        values[f"{task}/upright_accuracy"] = report.upright.accuracy
    with tracked_again(folder) as tracker:
        # Of several values MLflow shows that of the largest step, and of equal steps the latest.
        tracker.metrics(0, values)
        for point in report.curve:  # MLflow then charts accuracy against T
            steps, size = point.inner
            if point.score is not None and steps is not None:
                lr = "" if size == now.lr else f"/lr-{size:.4g}"
                found = {"accuracy": point.score.accuracy, "ci95": point.score.ci95}
                scores = {f"{task}/{CURVE}{lr}/{key}": value for key, value in found.items()}
                tracker.metrics(steps, scores)
        if report.picture is not None:
            tracker.artifact(Path(report.picture), "pictures")
