"""The hyper-iterations of a tuning: shown, tracked, and saved as they go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from bilevel_apps.system.signals import stop_request
from bilevel_apps.system.terminal import progress_bar
from bilevel_apps.tracking.tracker import Tracker
from bilevel_apps.tune.folder import TuneFolder, arrays_of
from bilevel_apps.tune.tuning import HistoryRow, Tuning
from bilevel_core import OuterStep, Problem, minimize, minimize_online
from bilevel_core.types import Tree

__all__ = ["INTERRUPTED", "Loop"]

SAVE_SECONDS = 10.0  # between two savings of the history
FEW = 16  # a λ of so many numbers is kept in every record
INTERRUPTED = "interrupted"


@final
@dataclass(kw_only=True)
class Loop:
    """A tuning on its way.

    Attributes:
        tuning: what is tuned.
        folder: where the history and the best λ are saved, every ten seconds and in the end.
        tracker: told of every hyper-iteration.
        records: the hyper-iterations so far.
        best: the one whose λ is kept; in an online run the last.
    """

    tuning: Tuning
    folder: TuneFolder
    tracker: Tracker
    records: list[HistoryRow] = field(default_factory=list)
    best: OuterStep | None = None
    _began: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    @property
    def length(self) -> int:
        """The number of hyper-iterations, at most."""
        tuning = self.tuning
        return tuning.steps // tuning.every if tuning.online else tuning.outer_steps

    def run(self) -> tuple[str, Tree, Tree | None]:
        """Return why the loop ended, the tuned λ, and w where the loop leaves one.

        Raises:
            ArithmeticError: an inner run failed; what was reached is saved.
        """
        with self._kept(), progress_bar("tuning", self.length) as show, stop_request() as stopping:

            def callback(step: OuterStep) -> bool:
                self._add(step)
                best = min(record.value for record in self.records)
                show(step.index + 1, f"outer objective {step.value:.4g}, best {best:.4g}")
                return bool(stopping) and step.index + 1 < self.length

            stopped, lam, w = _minimized(self.tuning, callback)
            self._save(lam)
        short = stopped == "callback" or (self.tuning.online and len(self.records) < self.length)
        return INTERRUPTED if short else stopped, lam, w

    def _add(self, step: OuterStep) -> None:
        now = time.monotonic()
        arrays = arrays_of(step.lam)
        few = sum(array.size for array in arrays.values()) <= FEW
        record = HistoryRow(
            index=step.index,
            value=step.value,
            grad_norm=step.grad_norm,
            seconds=now - self._began,
            lam={key: array.tolist() for key, array in arrays.items()} if few else None,
        )
        self.records.append(record)
        if self.best is None or self.tuning.online or step.value < self.best.value:
            self.best = step
        metrics = {"outer/value": step.value, "outer/grad_norm": step.grad_norm}
        if few:
            metrics |= {f"lam/{k}": float(a) for k, a in arrays.items() if a.ndim == 0}
        self.tracker.metrics(step.index + 1, metrics)
        if now - self._saved > SAVE_SECONDS:  # a process that is killed leaves what it had
            self._save(self.best.lam)

    def _save(self, lam: Tree) -> None:
        self.folder.save_history(self.records)
        self.folder.save_hyperparameters(lam)
        self._saved = time.monotonic()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Save what was reached before an inner run failed, and say where."""
        try:
            yield
        except ArithmeticError as error:
            if self.best is not None:
                self._save(self.best.lam)
                count = len(self.records)
                error.add_note(f"{self.folder.path} keeps the {count} hyper-iterations before")
            raise


def _minimized(
    tuning: Tuning, callback: Callable[[OuterStep], bool]
) -> tuple[str, Tree, Tree | None]:
    if not tuning.online:
        run = minimize(
            tuning.problem,
            tuning.dynamics,
            tuning.lam,
            steps=tuning.steps,
            outer_steps=tuning.outer_steps,
            optimizer=tuning.optimizer,
            engine=tuning.engine,
            reparametrize=tuning.reparametrize,
            project=tuning.project,
            stop=tuning.stop,
            callback=callback,
        )
        return run.stopped, run.best_lam, None
    if not isinstance(tuning.problem, Problem):  # `Tuning` refuses it; a type checker cannot know
        raise TypeError("an online run needs a Problem")
    online = minimize_online(
        tuning.problem,
        tuning.dynamics,
        tuning.lam,
        steps=tuning.steps,
        optimizer=tuning.optimizer,
        every=tuning.every,
        reparametrize=tuning.reparametrize,
        project=tuning.project,
        callback=callback,
    )
    return "steps", online.lam, tuning.dynamics.params(online.state)
