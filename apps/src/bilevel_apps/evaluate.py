"""Score a run, and baselines, on the same episodes of a split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from bilevel_apps.build import make_task
from bilevel_apps.errors import RunError
from bilevel_apps.meta_task import MetaTask, to_device
from bilevel_apps.report import progress_bar, warn
from bilevel_apps.scoring import Score, nearest_pixel, score_episodes
from bilevel_apps.tracking import tracked_again
from bilevel_apps.trained_run import TrainedRun, load_run
from bilevel_core import DivergenceError
from bilevel_data import EpisodeSampler, Store

__all__ = ["Request", "evaluate_run"]

CALIBRATION_EPISODES = 64


@final
@dataclass(frozen=True, kw_only=True)
class Request:
    """What to score; None stands for what the run was trained for."""

    data: Path | None = None
    split: str = "test"
    episodes: int = 600
    way: int | None = None
    shot: int | None = None
    query: int | None = None
    steps: int | None = None
    seed: int = 0
    baselines: bool = False
    track: bool = False
    device: str = "auto"


def evaluate_run(folder: Path, request: Request) -> dict[str, Any]:
    """Return what `bilevel-eval --json` prints.

    Raises:
        InputError: the run, the store or the numbers do not fit together.
        RunError: the inner runs diverge.
        bilevel_data.DataError: the store cannot be used, or has too few classes or images.
    """
    run = load_run(folder, request.device)
    store = run.store(request.data)
    sampler = run.sampler(
        store,
        request.split,
        seed=request.seed,
        rotations=bool(run.config.episode.rotations),
        way=request.way,
        shot=request.shot,
        query=request.query,
    )
    steps = run.config.inner.steps if request.steps is None else request.steps
    task = dataclasses.replace(run.task, steps=steps)
    spec = sampler.spec
    report: dict[str, Any] = {
        **_entry(_scored("evaluating", task, sampler, run, request)),
        "episodes": request.episodes,
        "way": spec.way,
        "shot": spec.shot,
        "query": spec.query,
        "steps": steps,
        "norm": run.config.model.norm,
        "split": request.split,
        "split_sha256": store.manifest.splits[request.split].sha256,
        "seed": request.seed,
        "rotations": sampler.rotations,
        "checkpoint": str(run.path),
        "checkpoint_sha256": run.sha256,
    }
    if sampler.rotations and spec.way <= sampler.split.num_classes:
        upright = dataclasses.replace(sampler, rotations=False)
        report["upright"] = _entry(_scored("upright", task, upright, run, request))
    if request.baselines:
        report["baselines"] = _baselines(task, sampler, store, run, request)
    if request.track:
        _track(folder, report)
    return report


def _scored(
    what: str, task: MetaTask, sampler: EpisodeSampler, run: TrainedRun, request: Request
) -> Score:
    try:
        with progress_bar(what, request.episodes) as show:
            return score_episodes(
                task.accuracies,
                sampler,
                episodes=request.episodes,
                device=run.device,
                progress=show,
            )
    except DivergenceError as error:
        raise RunError(f"{what}: {error}; or evaluate with fewer --steps") from error


def _baselines(
    task: MetaTask, sampler: EpisodeSampler, store: Store, run: TrainedRun, request: Request
) -> dict[str, Any]:
    """Return the scores, on the same episodes, of what needs no training."""
    pixels = score_episodes(nearest_pixel, sampler, episodes=request.episodes, device=run.device)
    scores = {"raw-pixel nearest neighbour": _entry(pixels)}
    fresh = make_task(run.config, run.image_shape, run.device)
    untrained = dataclasses.replace(fresh, steps=task.steps)
    try:
        _calibrate(untrained, store, run)
        scores["untrained network"] = _entry(_scored("untrained", untrained, sampler, run, request))
    except RunError as error:  # the run's own score is worth more than this one
        warn(f"no score of the untrained network: {error}")
    return scores


def _calibrate(untrained: MetaTask, store: Store, run: TrainedRun) -> None:
    """Let the running averages of fresh weights settle, so that the baseline is a fair one."""
    if "train" not in store.splits:
        return
    rotations = bool(run.config.episode.rotations)
    sampler = run.sampler(store, "train", seed=run.config.seed, rotations=rotations)
    for index in range(CALIBRATION_EPISODES):
        batch = to_device(sampler.batch(index, 1), sampler.spec.way, run.device)
        untrained.encoder.encode(batch.support, batch.query, training=True)


def _entry(found: Score) -> dict[str, float]:
    return {"accuracy": found.accuracy, "ci95": found.ci95}


def _track(folder: Path, report: dict[str, Any]) -> None:
    """Log the scores to the run in MLflow, under the split and the kind of episode."""
    task = f"{report['split']}/{report['way']}way-{report['shot']}shot"
    values = {f"{task}/accuracy": report["accuracy"], f"{task}/ci95": report["ci95"]}
    if "upright" in report:
        values[f"{task}/upright_accuracy"] = report["upright"]["accuracy"]
    with tracked_again(folder) as tracker:
        tracker.metrics(report["steps"], values)  # MLflow then charts accuracy against T
