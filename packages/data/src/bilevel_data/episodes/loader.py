"""Batches of episodes, made ahead of time in one thread."""

import threading
import weakref
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol, Self, final

from bilevel_data.episodes.episode import EpisodeBatch
from bilevel_data.errors import DataError

__all__ = ["BatchSampler", "EpisodeLoader"]


class BatchSampler(Protocol):
    """Whatever makes batches of numbered episodes, such as an `EpisodeSampler`."""

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Episodes `first` … `first + count - 1`."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Channel:
    """What the thread and its consumer share: finished batches, room for more, and an end."""

    results: "SimpleQueue[EpisodeBatch | BaseException]" = field(default_factory=SimpleQueue)
    room: threading.Semaphore
    stop: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        self.stop.set()
        self.room.release()  # wakes the thread if it waits for room


@final
class EpisodeLoader:
    """An iterator over batches: step k holds episodes k·meta_batch … (k+1)·meta_batch - 1.

    It goes once through its steps: another pass is another loader, with `first_step` where this
    one ended for new episodes. The batches are the same whatever `prefetch` is. Leaving the
    `with` block, `close`, the end of the steps, an error, or dropping the loader ends its thread.

    Args:
        sampler: makes the batches.
        meta_batch: episodes a batch, ≥ 1.
        first_step: the step to begin with, ≥ 0: the number of steps done before a resume.
        steps: how many batches, ≥ 0.
        prefetch: how many batches to have ready (memory: as many batches); 0 makes each one
            when it is asked for, without a thread.

    Raises:
        DataError: a number is too small, or a second pass over it is begun.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        *,
        meta_batch: int,
        first_step: int = 0,
        steps: int,
        prefetch: int = 2,
    ) -> None:
        numbers = {"first_step": first_step, "steps": steps, "prefetch": prefetch}
        for key, value in {"meta_batch": meta_batch - 1, **numbers}.items():
            if value < 0:
                least = int(key == "meta_batch")
                raise DataError(f"{key}: expected a number ≥ {least}, found {value + least}")
        self._sampler = sampler
        self._meta_batch = meta_batch
        self._step, self._end = first_step, first_step + steps
        self._prefetch = prefetch
        self._spent = False
        self._channel: _Channel | None = None
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Number of batches still to come."""
        return self._end - self._step

    def __iter__(self) -> Self:
        if self._spent:  # and not an epoch of nothing
            raise DataError(
                f"EpisodeLoader: its steps are done: make another, with first_step={self._step} "
                "for the episodes after these"
            )
        return self

    def __next__(self) -> EpisodeBatch:
        if self._step >= self._end:
            self._spent = True
            self.close()
            raise StopIteration
        try:
            batch = self._take() if self._prefetch else self._make()
        except BaseException:
            self.close()
            raise
        self._step += 1
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, and the iteration; harmless when repeated."""
        self._end = self._step
        channel, thread = self._channel, self._thread
        self._channel = self._thread = None
        if channel is not None and thread is not None:
            channel.close()
            thread.join()

    def _make(self) -> EpisodeBatch:
        return self._sampler.batch(self._step * self._meta_batch, self._meta_batch)

    def _take(self) -> EpisodeBatch:
        # Started late, so that a loader may be made before a fork.
        if self._channel is None:
            self._channel = _Channel(room=threading.Semaphore(self._prefetch))
            # The thread knows the channel but not the loader: dropping the loader ends it.
            work = (self._sampler, self._meta_batch, range(self._step, self._end), self._channel)
            weakref.finalize(self, self._channel.close)
            self._thread = threading.Thread(
                target=_produce, args=work, name="episode-loader", daemon=True
            )
            self._thread.start()
        result = self._channel.results.get()
        self._channel.room.release()
        if isinstance(result, BaseException):
            raise result
        return result


def _produce(sampler: BatchSampler, meta_batch: int, steps: range, channel: _Channel) -> None:
    for step in steps:
        channel.room.acquire()
        if channel.stop.is_set():
            return
        try:
            channel.results.put(sampler.batch(step * meta_batch, meta_batch))
        except BaseException as err:  # raised again by the consumer
            channel.results.put(err)
            return
