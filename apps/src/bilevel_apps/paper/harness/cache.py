"""The pieces of an item's work: each is recorded when it is done, and not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from bilevel_apps.runs.build import store_of
from bilevel_apps.system.files import read_json, write_text
from bilevel_apps.system.terminal import progress_bar, say
from bilevel_apps.tracking.tracker import Target, Tracker

__all__ = ["Part", "Work"]

FORMAT = "bilevel-paper-1"


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of work that is done.

    Attributes:
        key: its name.
        seconds: what it took, in the process that did it.
        result: what it returned.
    """

    key: str
    seconds: float
    result: Any


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """How much to compute, and where its pieces are recorded.

    Attributes:
        name: of the item.
        folder: of the records, one JSON file a part.
        full: the paper's sizes, or else enough to see the claims.
        seeds: how many data sets, or trainings.
        tracker: told of every part that is done.
        data: the store that it takes; None only where the item needs none.
        stores: all that were given, by the names of their data sets.
        only: the cells to compute; empty: all.
        assignments: changes of the settings of what is trained, `key=value` each.
        runs: folders of runs, or `pretrained:TAG`, to take in the place of a training, by the cell;
            the only one of an item without cells is under the empty name.
        target: where the tracker records, if it does.
        clock: the time in seconds.
    """

    name: str
    folder: Path
    full: bool
    seeds: int
    tracker: Tracker
    data: Path | None = None
    stores: Mapping[str, Path] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    runs: Mapping[str, Path] = field(default_factory=dict)
    target: Target | None = None
    clock: Callable[[], float] = time.perf_counter

    @property
    def store(self) -> Path:
        """The store that the item takes.

        Raises:
            InputError: none was given.
        """
        return self.data or store_of(None).path

    def by_seed(
        self, compute: Callable[[int], Mapping[str, Any]], settings: Mapping[str, Any]
    ) -> list[Part]:
        """Return what `compute` returns for the seeds 0, 1, …; see `parts`."""

        def of(seed: int) -> Callable[[], Mapping[str, Any]]:
            return lambda: compute(seed)

        return self.parts({f"seed-{seed}": of(seed) for seed in range(self.seeds)}, settings)

    def parts(
        self,
        todo: Mapping[str, Callable[[], Mapping[str, Any]]],
        settings: Mapping[str, Any],
        own: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        bar: bool = True,
    ) -> list[Part]:
        """Compute what is not recorded yet.

        Args:
            todo: by the name of a file each, what returns a result that JSON can hold. Its numbers
                on the first level are logged.
            settings: everything that decides the results; one recorded with others is computed
                again.
            own: what decides the result of one part alone, by its name.
            bar: show how many are done; off where the parts show a progress of their own.

        Raises:
            RunError: a record cannot be written.
        """
        whole = {key: {**settings, **(own or {}).get(key, {})} for key in todo}
        found = {key: self._recorded(key, whole[key]) for key in todo}
        known = sum(part is not None for part in found.values())
        if known:
            say(f"{self.name}: {known} of {len(todo)} parts are recorded in {self.folder}")
        parts: list[Part] = []
        with progress_bar(self.name, len(todo), known) if bar else _saying(self.name) as show:
            for number, (key, compute) in enumerate(todo.items()):
                part = found[key]
                if part is None:
                    part = self._computed(key, compute, whole[key])
                    known += 1
                    show(known, key)
                parts.append(part)
                self._log(number, part)
        return parts

    def _computed(
        self, key: str, compute: Callable[[], Mapping[str, Any]], settings: Mapping[str, Any]
    ) -> Part:
        began = self.clock()
        result = compute()
        seconds = self.clock() - began
        document = {"format": FORMAT, "settings": settings, "seconds": seconds, "result": result}
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        write_text(self._file(key), f"{text}\n")
        # As it will be read again, so that a resumed report has the same numbers and types.
        return Part(key=key, seconds=seconds, result=json.loads(text)["result"])

    def earlier(self) -> list[Part]:
        """Return all parts that are recorded, with whatever settings."""
        found = [self._read(path.stem) for path in sorted(self.folder.glob("*.json"))]
        return [recorded[1] for recorded in found if recorded is not None]

    def _recorded(self, key: str, settings: Mapping[str, Any]) -> Part | None:
        """Return a part that was done with the same settings."""
        recorded = self._read(key)
        if recorded is None or recorded[0] != _plain(settings):
            return None
        return recorded[1]

    def _read(self, key: str) -> tuple[Any, Part] | None:
        """Return the settings of a recorded part, and the part; None where none can be read."""
        try:
            document = read_json(self._file(key))
            if document["format"] != FORMAT:
                return None
            part = Part(key=key, seconds=float(document["seconds"]), result=document["result"])
            return document["settings"], part
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _log(self, step: int, part: Part) -> None:
        numbers = {k: v for k, v in part.result.items() if isinstance(v, int | float)}
        self.tracker.metrics(step, {"part/seconds": part.seconds, **numbers})


@contextmanager
def _saying(name: str) -> Iterator[Callable[[int, str], None]]:
    """Yield what says, in a line, that a part is done."""
    yield lambda _done, key: say(f"{name}: {key} is done")


def _plain(settings: Mapping[str, Any]) -> Any:
    """Return settings as a record holds them: tuples as lists, keys as texts."""
    return json.loads(json.dumps(settings, ensure_ascii=False))
