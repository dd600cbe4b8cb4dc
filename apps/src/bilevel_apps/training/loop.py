"""Meta-training: hyper-iterations with validation, checkpoints, tracking and resumption.

Every hyper-iteration is a function of the weights, the optimiser's state and its own number, so a
run that was killed continues to the same bits: on a CPU, at the same number of threads.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import store_of
from bilevel_apps.runs.checkpoint import Checkpoint, save_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.record import Ending, RunRecord
from bilevel_apps.scoring.learner import score_learner
from bilevel_apps.scoring.score import Score
from bilevel_apps.system.hardware import choose_device
from bilevel_apps.system.processes import ALONE, Processes
from bilevel_apps.system.signals import Interrupted, stop_request
from bilevel_apps.system.terminal import progress_bar, say
from bilevel_apps.tracking.tracker import Tracker, closing
from bilevel_apps.training.data_parallel import check_shareable, shared_gradients, use_own_gpu
from bilevel_apps.training.gradients import outer_steps
from bilevel_apps.training.messages import diverged, not_finite, say_beginning, say_ending
from bilevel_apps.training.optimizer import clipped_norm, learning_rate
from bilevel_apps.training.prepare import prepare, resolve, resumable
from bilevel_apps.training.state import Training
from bilevel_apps.training.stopping import finished, out_of_patience
from bilevel_apps.training.tracking import start_tracking
from bilevel_core import DivergenceError
from bilevel_data import EpisodeLoader, Store
from bilevel_meta.episodes import as_episodes
from bilevel_meta.methods.hyper_representation import HyperRepresentation

__all__ = ["train"]


def train(config: Config, out: Path, *, resume: bool, processes: Processes = ALONE) -> Score | None:
    """Run, or continue, a training; returns the best validation score of this process.

    Args:
        config: what to run; to continue, the configuration that the folder holds.
        out: the run's folder; made if it is missing. The first process alone uses it.
        resume: continue from the folder's last checkpoint, if it has one.
        processes: who divides the episodes; all of them call this, inside `connected`.

    Raises:
        InputError: the input cannot be used, or the folder holds a run and `resume` is off.
        RunError: the training failed, or another process is gone; the last checkpoint is kept.
        bilevel_data.DataError: the store cannot be used.
    """
    folder = RunFolder(out)
    processes.from_first(lambda: _refuse_another(folder, resume))
    with processes.agreed():
        store = store_of(config.data)
        training = _prepare(config, folder, store, processes)
    with ExitStack() as stack:
        begun = processes.from_first(lambda: _begin(training, stack, resume=resume))
        if begun is not None:
            checkpoint, record = begun
            with processes.agreed():
                training.restore(checkpoint.tensors, record)
        due = begun is not None and not begun[1].validated
        processes.from_first(lambda: training.folder.save_config(training.config))
        tracker = start_tracking(training, store, resume=resume)
        with closing(tracker):
            return _run(training, tracker, due=due)


def _prepare(config: Config, folder: RunFolder, store: Store, processes: Processes) -> Training:
    device = choose_device(config.device)
    if device.type == "cuda":
        use_own_gpu(processes)
    config = resolve(config, store, device, processes)
    training = prepare(config, folder, store, device, processes)
    check_shareable(config, training.learner, processes)
    return training


def _begin(
    training: Training, stack: ExitStack, *, resume: bool
) -> tuple[Checkpoint, RunRecord] | None:
    """Take the folder, until the stack closes; return the checkpoint to continue from."""
    folder = training.folder
    stack.enter_context(folder.exclusive())
    _refuse_another(folder, resume)  # again: one may have begun meanwhile
    if not resume:
        folder.check_config()
    return resumable(folder, training) if resume and folder.last.exists() else None


def _refuse_another(folder: RunFolder, resume: bool) -> None:
    if folder.trained() and not resume:
        raise InputError(
            f"{folder.path}: holds a run already: add `resume`, or choose another `out`"
        )


def _run(training: Training, tracker: Tracker, *, due: bool) -> Score | None:
    """Train until the run ends or is stopped; `due` is a validation that a signal ended before."""
    say_beginning(training)
    best = None
    if not training.ended:
        with stop_request(tell=training.processes.first) as training.signals:
            tracker.hurried = partial(bool, training.signals)
            try:
                best = _validate_again(training, tracker) if due else None
                if not training.ended:
                    best = _iterate(training, tracker) or best
            except Interrupted:
                training.processes.wait()  # torchrun kills the others when one has ended
                say_ending(training)
                raise
        say_ending(training)
    tracker.describe({}, {"ended": str(training.ended)})
    return best


def _validate_again(training: Training, tracker: Tracker) -> Score | None:
    """Make the validation that a signal ended; the run may end with it, as it would have."""
    training.ended = finished(training.config.train, training.step, training.clock.before)
    return _settle(training, tracker, due=True)


def _iterate(training: Training, tracker: Tracker) -> Score | None:
    """Take outer steps until the run ends or is stopped; return the best validation's score."""
    config, steps = training.config, training.config.train.steps
    best = None
    loader = EpisodeLoader(
        training.batches(),
        meta_batch=config.train.meta_batch,
        first_step=training.step,
        steps=steps - training.step,
    )
    with loader as batches, progress_bar("training", steps, training.step) as show:
        for batch in batches:
            training.meter.add(_hyper_iteration(training, batch), config.train.meta_batch)
            training.ended = _finished(training)
            best = _report(training, tracker) or best
            show(training.step, training.meter.note(training.best_accuracy))
            if training.ended:
                break
            if training.stop:
                raise Interrupted
    return best


def _finished(training: Training) -> Ending | None:
    """Say whether the hyper-iterations or the time are used up; all processes say the same.

    Clocks differ, and a signal reaches several processes at several times: that one of them wants
    to stop has been agreed on with the hypergradient, and the first one's clock then decides.
    """
    clock, processes = training.clock, training.processes
    if processes.size == 1:
        training.stop, seconds = bool(training.signals), clock.seconds()
    else:
        seconds = processes.from_first(clock.seconds) if training.stop else 0.0
    return finished(training.config.train, training.step, seconds)


def _report(training: Training, tracker: Tracker) -> Score | None:
    """Log, validate and save what is due; return the score if it is the best one so far."""
    config, step = training.config, training.step
    if step % config.tracking.every == 0:
        tracker.metrics(step, training.meter.take() | _scalars(training))
    due = training.ended is not None or step % config.train.validate_every == 0
    return _settle(training, tracker, due=due)


def _settle(training: Training, tracker: Tracker, *, due: bool) -> Score | None:
    """Validate, if that is due, and save what is; return the score if it is the best one so far."""
    config, step = training.config.train, training.step
    best = None
    if due:
        try:
            best = _validate(training, tracker)
        except Interrupted:
            training.ended = None  # the resumed run says so, after the same validation
            tracker.flush()
            _save(training, training.folder.last, validated=False)
            raise
        training.ended = training.ended or out_of_patience(config, step, training.best_step)
    if training.ended or training.stop or step % config.checkpoint_every == 0:
        tracker.flush()  # what a kill would lose is not made again after this checkpoint
        _save(training, training.folder.last)
    return best


def _hyper_iteration(training: Training, batch: Any) -> dict[str, float]:
    """Take the outer steps of one meta-batch; return what happened in the last, for the log."""
    config, learner = training.config.train, training.learner
    lr = learning_rate(config.schedule, config.lr, training.step, config.steps)
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    episodes = as_episodes(batch, training.device)
    gradients = outer_steps(learner, episodes, config.accumulate)
    if training.processes.size > 1:
        wish, processes = _wants_to_stop(training), training.processes
        gradients = shared_gradients(gradients, learner, episodes, processes, stop=wish)
    figures = {}
    try:
        for outer in gradients:
            norm = clipped_norm(learner, config.clip)
            if not math.isfinite(norm):  # a step along it would spoil the weights that are saved
                raise not_finite(training)
            training.optimizer.step()
            training.stop = outer.stop
            figures = {"train/loss": outer.loss, "outer/grad_norm": norm}
            if not math.isnan(outer.accuracy):
                figures["train/accuracy"] = outer.accuracy
    except DivergenceError as error:
        raise diverged(training, "after", error) from error
    training.step += 1
    if training.average is not None:
        training.average.update_parameters(learner)
    return figures | {"outer/lr": lr}


def _wants_to_stop(training: Training) -> bool:
    """Say whether this process was asked to stop, or is the first one and its time is over."""
    over = finished(training.config.train, 0, training.clock.seconds()) is not None
    return bool(training.signals) or (over and training.processes.first)


def _scalars(training: Training) -> dict[str, float]:
    model = training.learner
    if not isinstance(model, HyperRepresentation):
        return {}
    if model.solver is not None:
        return {
            f"inner/{name.removeprefix('log_')}": float(value.detach().exp())
            for name, value in model.solver.named_parameters()
        }
    return {
        "inner/lr": float(model.log_lr.detach().exp()),
        "inner/scale": float(model.log_scale.detach().exp()),
    }


def _validate(training: Training, tracker: Tracker) -> Score | None:
    """Score the validation episodes; keep the checkpoint and return the score if it is the best."""
    try:
        found = score_learner(
            training.scored,
            training.val_episodes,
            episodes=training.config.train.validate_episodes,
            device=training.device,
            processes=training.processes,
            signals=training.signals,
        )
    except DivergenceError as error:
        raise diverged(training, "validation after", error) from error
    tracker.metrics(training.step, {"val/accuracy": found.accuracy, "val/ci95": found.ci95})
    say(f"hyper-iteration {training.step}: validation accuracy {found}")
    if found.accuracy <= training.best_accuracy:
        return None
    training.best_accuracy, training.best_ci95 = found.accuracy, found.ci95
    training.best_step = training.step
    _save(training, training.folder.best)
    tracker.artifact(training.folder.best)
    values = {"val/best_accuracy": found.accuracy, "val/best_ci95": found.ci95}
    tracker.metrics(training.step, values)
    return found


def _save(training: Training, path: Path, *, validated: bool = True) -> None:
    if training.processes.first:
        made = training.checkpoint()
        record = made.record if validated else {**made.record, "validated": False}
        save_checkpoint(path, replace(made, record=record))
