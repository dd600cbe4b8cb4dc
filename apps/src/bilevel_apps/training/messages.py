"""What a training says of itself: how it begins, why it ended or failed, and how to go on."""

from __future__ import annotations

import torch

from bilevel_apps.config.resume import may_change
from bilevel_apps.errors import RunError
from bilevel_apps.runs.record import Ending
from bilevel_apps.system.terminal import say
from bilevel_apps.training.state import Training
from bilevel_apps.training.stopping import describe_ending
from bilevel_core import DivergenceError
from bilevel_meta.methods.hyper_representation import inner_of

__all__ = ["diverged", "not_finite", "say_beginning", "say_ending"]


def say_beginning(training: Training) -> None:
    """Say what is trained, and where a resumed run goes on, if it does."""
    config, learner = training.config, training.learner
    parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    way = config.train.way or config.episode.way
    shot = config.train.shot or config.episode.shot
    say(
        f"{config.method}, {config.model.name}: {parameters:,} outer parameters, "
        f"{config.model.norm} normalisation, "
        f"{inner_of(learner)}; {config.train.meta_batch} episodes of {_size(way)}-way "
        f"{_size(shot)}-shot a hyper-iteration; {training.device}, "
        f"{torch.get_num_threads()} threads, {config.precision}"
        + (f", {training.processes.size} processes" if training.processes.size > 1 else "")
        + (f", {1 + len(config.train.mix)} stores" if config.train.mix else "")
    )
    if training.ended:
        why = describe_ending(training.ended, config.train, training.step)
        say(f"nothing to resume: the run {why}; for a longer one, {_longer(training)}")
    elif training.step:
        say(f"resuming after hyper-iteration {training.step} of {config.train.steps}")


def say_ending(training: Training) -> None:
    """Say why the run ended, or where it was stopped."""
    if training.ended:
        say(describe_ending(training.ended, training.config.train, training.step))
    else:
        say(f"stopped at hyper-iteration {training.step}; continue with --resume")


def diverged(training: Training, when: str, error: DivergenceError) -> RunError:
    """Return what to say of inner runs that diverge, `when` such as `after`."""
    return RunError(
        f"{when} hyper-iteration {training.step}: {error} (inner.lr or inner.scale; train.lr if it "
        f"went well before; or set model.unit_length=true, under a new `out`); {_kept(training)}"
    )


def not_finite(training: Training) -> RunError:
    """Return what to say of a gradient that is not finite."""
    return RunError(
        f"after hyper-iteration {training.step}: the gradient of the weights is not finite: "
        f"lower train.lr, or use precision=float32; {_kept(training)}"
    )


def _size(number: int | tuple[int, int]) -> str:
    """Return a number of classes or images, or the lowest and the highest that there may be."""
    low, high = number if isinstance(number, tuple) else (number, number)
    return str(low) if low == high else f"{low}…{high}"


def _longer(training: Training) -> str:
    """Say how to have a longer run than the one that ended: a resume changes little else."""
    key = f"train.{training.ended}"
    if key in may_change(training.config.train):
        return f"add --set {key}=N to --resume"
    follows = f" (the {training.config.train.schedule} schedule follows it)"
    return f"set {key} under a new --out{follows if training.ended is Ending.STEPS else ''}"


def _kept(training: Training) -> str:
    last = training.folder.last
    return f"{last} keeps the last good state" if last.exists() else "there is no checkpoint yet"
