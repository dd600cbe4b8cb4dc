"""Several processes, as torchrun starts them: who is who, what they agree on, how they fail.

A refusal is agreed on, so that all of them end alike. Any other failure of one process simply ends
it: its connections close, and the others end with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, final

from bilevel_apps.errors import InputError, RunError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ALONE", "Processes", "connected", "launched"]

# A process that dies closes its connections, which is noticed at once. This is for a machine that
# vanishes; it has to outlast what the first process does alone, such as copying to a slow tracker.
SILENCE = timedelta(minutes=5)

T = TypeVar("T")


@final
@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of a run; every method is a collective, called by all of them.

    Alone, a process agrees with itself, and torch.distributed is not imported.

    Attributes:
        rank: its number, from 0; the first one says, logs and saves.
        size: how many there are.
        local_rank: its number on this machine.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that says, logs and saves."""
        return self.rank == 0

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Raise in every process what one of them refuses in the block: its InputError, say."""
        if self.size == 1:
            yield
            return
        from bilevel_data import DataError

        refusal: Exception | None = None
        try:
            yield
        except (InputError, RunError, DataError) as error:
            refusal = error
        refusals: list[Exception | None] = [None] * self.size
        with _peers() as peers:
            peers.all_gather_object(refusals, refusal)
        for found in refusals:
            if found is not None:
                raise found from refusal

    def from_first(self, make: Callable[[], T]) -> T:
        """Return, in every process, what `make()` gives in the first one, or raise its refusal."""
        with self.agreed():
            made = [make() if self.first else None]
        if self.size > 1:
            with _peers() as peers:
                peers.broadcast_object_list(made, src=0)
        return made[0]  # type: ignore[return-value]

    def add(self, values: Tensor) -> None:
        """Replace values by their sum over the processes, in place; equal in all to the last bit.

        Raises:
            RunError: a process is gone.
        """
        if self.size > 1:
            with _peers() as peers:
                peers.all_reduce(values)

    def wait(self) -> None:
        """Return when all processes have come here.

        Raises:
            RunError: a process is gone.
        """
        if self.size > 1:
            with _peers() as peers:
                peers.barrier()


ALONE = Processes()


def launched(environ: Mapping[str, str]) -> Processes:
    """Return this process among those that torchrun started; without torchrun it is alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in environ for name in (*names, "MASTER_ADDR", "MASTER_PORT")):
        return ALONE
    rank, size, local_rank, local_size = (int(environ[name]) for name in names)
    return Processes(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


@contextmanager
def connected(processes: Processes) -> Iterator[None]:
    """Connect the processes: over gloo, and over NCCL for what lies on GPUs.

    Raises:
        RunError: they cannot find one another.
    """
    if processes.size == 1:
        yield
        return
    with _peers() as peers:
        import torch

        gpus = torch.cuda.is_available() and peers.is_nccl_available()
        peers.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            rank=processes.rank,
            world_size=processes.size,
            timeout=SILENCE,
        )
    yield
    # Not after an error: where a process is gone, taking leave of it could wait for it.
    peers.destroy_process_group()


@contextmanager
def _peers() -> Iterator[Any]:
    """Yield torch.distributed; what it raises in the block means that a process is gone."""
    import torch.distributed

    try:
        yield torch.distributed
    except RuntimeError as error:
        # gloo puts a place in its source before the reason, and guesses after it.
        reason = re.sub(r"^\[\S+\] ", "", str(error)).partition(". ")[0]
        raise RunError(
            f"another process of the run ended or cannot be reached ({reason}): start again, with "
            "`resume` to continue from the last checkpoint"
        ) from error
