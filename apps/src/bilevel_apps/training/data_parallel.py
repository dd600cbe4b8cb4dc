"""A hyper-iteration divided among processes: each takes a part of the meta-batch.

The outer gradient is a mean over episodes, so the mean of the processes' own is that of the whole
meta-batch. DistributedDataParallel would do for it; here the running averages and the wish to stop
travel in the same all-reduce, so that all processes have what one would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError
from bilevel_apps.system.processes import Processes
from bilevel_apps.training.gradients import OuterStep, outer_steps
from bilevel_data import EpisodeBatch
from bilevel_data.episodes.loader import BatchSampler
from bilevel_meta.episodes import Episodes
from bilevel_meta.learner import Learner
from bilevel_models import Normalization

__all__ = [
    "Shard",
    "check_shareable",
    "shared_gradients",
    "shared_hypergradient",
    "use_own_gpu",
]


@final
@dataclass(frozen=True, kw_only=True)
class Shard:
    """This process's part of every meta-batch: processes of rank 0, 1, … take them in order.

    Attributes:
        whole: makes the meta-batches.
        processes: who divides them.
    """

    whole: BatchSampler
    processes: Processes

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Return the part of episodes `first` … `first + count - 1`."""
        each = count // self.processes.size
        return self.whole.batch(first + self.processes.rank * each, each)


def check_shareable(config: Config, model: nn.Module, processes: Processes) -> None:
    """Refuse what several processes cannot compute as one would.

    Raises:
        InputError: the meta-batch does not divide, an episode is normalised by all others, or the
            model remembers something else than running averages.
    """
    size, meta_batch = processes.size, config.train.meta_batch
    if size == 1:
        return
    if meta_batch % size:
        raise InputError(
            f"train.meta_batch={meta_batch}: {size} processes cannot share it evenly: set a "
            f"multiple of {size}, or start another number of processes"
        )
    if config.model.norm == "batch":
        raise InputError(
            "model.norm=batch: its statistics are those of the whole meta-batch, which "
            f"{size} processes divide: set ghost, support or episode, or start one process"
        )
    known = {id(tensor) for tensor, _ in _running_averages(model)}
    for name, buffer in model.named_buffers():
        if id(buffer) not in known:
            raise InputError(
                f"model.name={config.model.name}: {size} processes would each have a {name} of "
                "their own, which is no running average: start one process"
            )


def use_own_gpu(processes: Processes) -> None:
    """Make each process compute on a GPU of its own.

    Raises:
        InputError: the machine has fewer GPUs than processes.
    """
    if processes.size == 1:
        return
    count = torch.cuda.device_count()
    if processes.local_size > count:
        raise InputError(
            f"{processes.local_size} processes on a machine with {count} GPUs: start at most "
            f"{count} there, or give `device`=cpu"
        )
    torch.cuda.set_device(processes.local_rank)


def shared_hypergradient(
    learner: Learner, episodes: Episodes, processes: Processes, *, stop: bool
) -> OuterStep:
    """Put the gradient of the whole meta-batch into the `grad` of the parameters.

    What `shared_gradients` does for a learner that takes one outer step.
    """
    steps = outer_steps(learner, episodes)
    (step,) = shared_gradients(steps, learner, episodes, processes, stop=stop)
    return step


def shared_gradients(
    steps: Iterator[OuterStep],
    learner: Learner,
    episodes: Episodes,
    processes: Processes,
    *,
    stop: bool,
) -> Iterator[OuterStep]:
    """Let each gradient that a learner puts into the `grad` be that of the whole meta-batch.

    With R processes, each of which has computed g_r and moved the running averages from a to a_r,

        g = Σ_r g_r / R,    a ← q^R a + Σ_r q^(R-1-r) (a_r - q a),    q = (1 - momentum)^n,

    where n is the number of a process's episodes, and the second is what one process gives that
    takes all episodes one after the other.

    Args:
        steps: what `outer_steps` yields for this process's part.
        learner: λ.
        episodes: this process's part of the meta-batch, as many in every process.
        processes: who divides it.
        stop: whether this process was asked to stop.

    Yields:
        Those of the whole meta-batch, which say whether any process was asked to stop.

    Raises:
        bilevel_core.DivergenceError: the inner runs of this process diverge.
        RunError: a process is gone.

    Cost: beside the method's, one all-reduce an outer step of as many numbers as the model has.
    """
    if processes.size == 1:
        yield from (replace(step, stop=stop) for step in steps)
        return
    averages = _averages_before(learner, len(episodes.support))
    for step in steps:
        yield _summed(step, averages, learner, processes, stop=stop)
        averages = _averages_before(learner, len(episodes.support))


def _summed(
    step: OuterStep,
    averages: Sequence[_Average],
    learner: Learner,
    processes: Processes,
    *,
    stop: bool,
) -> OuterStep:
    """Make one gradient, and the running averages that were moved for it, those of all."""
    grads = [p.grad.div_(processes.size) for p in learner.parameters() if p.grad is not None]
    for average in averages:
        average.leave_part(processes)
    first = next(learner.parameters())
    figures = first.new_tensor([step.loss, step.accuracy, stop])
    _sum([*grads, *(average.tensor for average in averages), figures], processes)
    for average in averages:
        average.make_whole(processes)
    loss, accuracy, stops = figures.tolist()
    size = processes.size
    return replace(step, loss=loss / size, accuracy=accuracy / size, stop=stops > 0)


@final
@dataclass(frozen=True, kw_only=True)
class _Average:
    """A running average during an outer step, in the notation of `shared_gradients`.

    Attributes:
        tensor: a_r.
        before: a, a copy.
        kept: q.
    """

    tensor: Tensor
    before: Tensor
    kept: float

    def leave_part(self, processes: Processes) -> None:
        """Turn a_r into this process's part of the sum."""
        later = processes.size - 1 - processes.rank
        self.tensor.sub_(self.kept * self.before).mul_(self.kept**later)

    def make_whole(self, processes: Processes) -> None:
        """Turn the sum into the new a."""
        self.tensor.add_(self.kept**processes.size * self.before)


def _averages_before(learner: Learner, episodes: int) -> list[_Average]:
    """Return the running averages that an outer step on so many episodes will move."""
    ghost = getattr(learner, "normalization", None) is Normalization.GHOST
    # What fits heads follows each episode's features, whatever normalises the images.
    moved: nn.Module | None = learner if ghost else getattr(learner, "solver", None)
    return [
        _Average(tensor=tensor, before=tensor.clone(), kept=kept**episodes)
        for tensor, kept in (() if moved is None else _running_averages(moved))
    ]


def _running_averages(model: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """Yield each running average and the part of it that one update keeps."""
    for module in model.modules():
        momentum = getattr(module, "momentum", None)
        if isinstance(momentum, float):
            for name, buffer in module.named_buffers(recurse=False):
                if name in ("running_mean", "running_var"):
                    yield buffer, 1 - momentum


def _sum(parts: Sequence[Tensor], processes: Processes) -> None:
    """Replace tensors by their sums over the processes, in one all-reduce."""
    flat = torch.cat([part.flatten() for part in parts])
    processes.add(flat)
    for part, total in zip(parts, torch.split(flat, [p.numel() for p in parts]), strict=True):
        part.copy_(total.view_as(part))
