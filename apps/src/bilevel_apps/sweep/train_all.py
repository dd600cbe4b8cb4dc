"""A sweep: trainings one after the other, each in a folder of its own, under one run of MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import final

from bilevel_apps.config import Config
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.runs.build import store_of
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.record import read_record
from bilevel_apps.sweep.axes import Settings
from bilevel_apps.sweep.folder import SweepFolder, child_name
from bilevel_apps.sweep.plan import Plan, check_plan, child_config, continued
from bilevel_apps.sweep.samplers import Proposals
from bilevel_apps.sweep.table import Child, best_first
from bilevel_apps.system.terminal import say, warn
from bilevel_apps.tracking.run import FOLDER_TAG, begin_child, begin_run
from bilevel_apps.tracking.tracker import Target, Tracker, closing
from bilevel_apps.training.loop import train
from bilevel_data import DataError, Store

__all__ = ["sweep"]


def sweep(given: Config, out: Path, plan: Plan | None, *, resume: bool) -> list[Child]:
    """Run, or continue, a sweep; returns its children.

    Finished children are skipped, an interrupted one goes on from its checkpoint, and failed ones
    are tried again. A failure of one is recorded and the others run. Equal settings run once.

    Args:
        given: what all children have in common.
        out: the sweep's folder; each child's is below it.
        plan: None continues with that of the folder.
        resume: continue the sweep that the folder holds.

    Raises:
        InputError: the plan or the settings cannot be used, or do not continue the folder's sweep.
        RunError: the sweep's own record cannot be written.
        bilevel_data.DataError: the store cannot be used.
        KeyboardInterrupt: the sweep was interrupted; it can be resumed.
    """
    folder = SweepFolder(out)
    _refuse_another(folder, resume)
    if given.data is not None:
        given = given.model_copy(update={"data": str(Path(given.data).resolve())})
    if given.train.mix:
        mix = {str(Path(path).resolve()): weight for path, weight in given.train.mix.items()}
        given = given.model_copy(update={"train": given.train.model_copy(update={"mix": mix})})
    children: list[Child] = []
    if folder.began():
        given, plan, children = continued(folder, given, plan)
    if plan is None:
        raise InputError(f"{out}: holds no sweep to resume: give `axes`=KEY=VALUE,…")
    upcoming = plan.proposals(given.seed)
    store = store_of(given.data)
    if not children:
        check_plan(given, plan, store)
    with RunFolder(out).exclusive():
        _refuse_another(folder, resume)  # again: one may have begun meanwhile
        running = _Sweep(
            given=given,
            plan=plan,
            folder=folder,
            children=children,
            retry={child.name for child in children if child.error is not None},
        )
        running.save()
        running.track(store)
        with closing(running.tracker):
            _run_all(upcoming, running.child)
            running.summarize()
    return running.children


def _run_all(upcoming: Proposals, run: Callable[[Settings], float | None]) -> None:
    settings = next(upcoming, None)
    while settings is not None:
        accuracy = run(settings)
        try:
            settings = upcoming.send(accuracy)
        except StopIteration:
            return


@final
@dataclass(kw_only=True)
class _Sweep:
    """A sweep in progress.

    Attributes:
        given, plan: what it runs.
        folder: where.
        children: those that ended, in the order in which they were proposed.
        retry: names of those that failed in an earlier process.
        tracker: of the parent's run in MLflow; target: where it is.
    """

    given: Config
    plan: Plan
    folder: SweepFolder
    children: list[Child]
    retry: set[str]
    tracker: Tracker = field(default_factory=lambda: Tracker(warn=warn))
    target: Target | None = None

    def save(self) -> None:
        """Write what was planned and what came of it."""
        settings = self.given.model_dump(mode="json", exclude_unset=True)
        self.folder.save(asdict(self.plan), settings, self.children)

    def track(self, store: Store) -> None:
        """Begin or continue the parent's run."""
        tracking, run = self.given.tracking, RunFolder(self.folder.path)
        if not tracking.enabled:
            return
        self.tracker, self.target = begin_run(tracking, run, store, resume=True)
        tags = {"sweep": " ".join(self.plan.axes), "sampler": self.plan.sampler}
        self.tracker.describe({}, tags | {FOLDER_TAG: str(run.path.resolve())})

    def child(self, settings: Settings) -> float | None:
        """Train with some settings, unless that was done; return the validation accuracy."""
        number, before = self._known(settings)
        if before is not None and before.name not in self.retry:
            return None if before.error is not None else before.accuracy
        name = child_name(number, settings) if before is None else before.name
        self.retry.discard(name)
        say(f"sweep: child {name}")
        found = self._trained(Child(name=name, settings=settings))
        self.children[number - 1 : number] = [found]
        self.save()
        if found.error is not None:
            say(f"sweep: child {name} failed: {found.error}")
            return None
        if found.accuracy is not None:
            self.tracker.metrics(number, {"child/accuracy": found.accuracy})
            self.tracker.flush()
        return found.accuracy

    def _known(self, settings: Settings) -> tuple[int, Child | None]:
        """Return the number of the child with these settings, from 1, and its record."""
        for number, child in enumerate(self.children, 1):
            if child.settings == settings:
                return number, child
        return len(self.children) + 1, None

    def _trained(self, child: Child) -> Child:
        path, begun = self.folder.path / child.name, time.monotonic()
        tracker = Tracker(warn=warn)
        if self.target is not None:
            named = replace(self.target, run_name=child.name)
            tracker = begin_child(self.tracker, named, RunFolder(path))
        try:
            config, run = child_config(self.given, child.settings), RunFolder(path)
            if run.began():
                config = run.continued(config)
            train(config, path, resume=True)
            record = read_record(load_checkpoint(run.best), run.best)
        except Exception as error:  # whatever it is, the other children may be spared it
            tracker.finish("FAILED")
            return replace(child, error=_reason(error))
        return replace(
            child,
            accuracy=record.best_accuracy,
            ci95=record.best_ci95,
            step=record.best_step,
            minutes=(time.monotonic() - begun) / 60,
        )

    def summarize(self) -> None:
        """Put the best child's metrics and the table of all on the parent, which lists show."""
        failed = sum(child.error is not None for child in self.children)
        counts = {"sweep/finished": len(self.children) - failed, "sweep/failed": failed}
        best = best_first(self.children)[0]
        if best.error is None:
            run_id = RunFolder(self.folder.path / best.name).load_tracking().get("run_id")
            metrics = self.tracker.latest(run_id) if run_id else {}
            self.tracker.metrics(len(self.children), metrics | counts)
            tags = {f"best.{key}": str(value) for key, value in best.settings.items()}
            self.tracker.describe({}, tags | {"best": best.name})
        else:
            self.tracker.metrics(len(self.children), counts)
        for path in (self.folder.table, self.folder.file):
            self.tracker.artifact(path)


def _reason(error: Exception) -> str:
    known = isinstance(error, InputError | RunError | DataError)
    text = " ".join(str(error).split())
    return text if known else f"{type(error).__name__}: {text}"


def _refuse_another(folder: SweepFolder, resume: bool) -> None:
    run = RunFolder(folder.path)
    if run.began() or run.trained():
        raise InputError(f"{folder.path}: holds a run of bilevel-train: choose another --out")
    if folder.began() and not resume:
        raise InputError(
            f"{folder.path}: holds a sweep already: add `resume`, or choose another `out`"
        )
