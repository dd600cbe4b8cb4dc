"""Tune a problem: hyper-iterations that are shown, tracked and saved, and the figures they give."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from bilevel_apps.errors import InputError, RunError
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.terminal import say, warn
from bilevel_apps.tracking.address import default_uri
from bilevel_apps.tracking.tracker import Target, Tracker, closing, open_tracker
from bilevel_apps.tune.folder import TuneFolder, next_folder
from bilevel_apps.tune.loop import INTERRUPTED, Loop
from bilevel_apps.tune.picture import draw_history
from bilevel_apps.tune.tuning import Figures, Tuning
from bilevel_core import Problem, hypergradient, solve_inner
from bilevel_core.types import Tree

__all__ = ["TuneRequest", "tune"]

OBJECTIVE = "outer objective"


@final
@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """Where a tuning goes, and what it is called.

    Attributes:
        name: of the problem, for messages and for MLflow's experiment.
        out: the folder, made if it is missing; None takes the next of `runs/tune-NAME-1`, ….
        settings: what the problem was made with, for the record.
        track: log to MLflow.
    """

    name: str
    out: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    track: bool = True


def tune(tuning: Tuning, request: TuneRequest) -> dict[str, Any]:
    """Minimise over λ; returns what is saved as figures.json.

    λ is judged by the outer objective alone: the best one seen is kept, or the last one of an
    online run. The figures of `report` and `baseline` are only looked at in the end. Ctrl-C and
    SIGTERM end the run after a hyper-iteration, with what was reached saved.

    Raises:
        InputError: the problem or the folder cannot be used.
        RunError: an inner run failed; the history and the best λ so far are saved.
        KeyboardInterrupt: the run was interrupted.

    Cost: that of `minimize` or `minimize_online`, and of two hypergradients for the figures.
    """
    if request.out is not None:
        TuneFolder(request.out).refuse_another()
    if tuning.title:
        say(tuning.title)
    with _mistakes(request.name):  # a problem that cannot be used leaves no folder
        start = _figures(tuning, tuning.lam, _solution(tuning, tuning.lam))
    folder = TuneFolder(request.out or next_folder(request.name))
    with folder.exclusive():
        tracker = _start_tracking(tuning, request, folder.path)
        loop = Loop(tuning=tuning, folder=folder, tracker=tracker)
        with closing(tracker), _mistakes(request.name):
            return _whole(loop, request, start)


def _whole(loop: Loop, request: TuneRequest, start: Figures) -> dict[str, Any]:
    """Tune, look at the held-out figures, and save them."""
    tuning = loop.tuning
    stopped, lam, w = loop.run()
    rows = {
        "start": start,
        "tuned": _figures(tuning, lam, _solution(tuning, lam) if w is None else w),
    }
    if tuning.baseline is not None and stopped != INTERRUPTED:
        rows |= {name: dict(figures) for name, figures in tuning.baseline().items()}
    document = {
        "problem": request.name,
        "title": tuning.title,
        "folder": str(loop.folder.path),
        **_what(tuning, request),
        "stopped": stopped,
        "hyper_iterations": len(loop.records),
        "kept": None if loop.best is None else loop.best.index,
        "seconds": loop.records[-1].seconds if loop.records else 0.0,
        "figures": rows,
    }
    _finish(loop, document, lam)
    if stopped == INTERRUPTED:
        say(
            f"stopped after hyper-iteration {len(loop.records)} of {loop.length}; "
            f"what was reached is in {loop.folder.path}"
        )
        raise KeyboardInterrupt
    return document


def _finish(loop: Loop, document: Mapping[str, Any], lam: Tree) -> None:
    """Save the figures and the picture, and hand all files to the tracker."""
    folder, tracker, records = loop.folder, loop.tracker, loop.records
    folder.save_figures(document)
    folder.save_picture(lambda path: draw_history(path, records, loop.tuning, lam, warn=warn))
    last = {
        f"{_metric(row)}/{_metric(name)}": value
        for row, figures in document["figures"].items()
        for name, value in figures.items()
    }
    tracker.metrics(len(records), last)
    for path in folder.files():
        tracker.artifact(path)


@contextmanager
def _mistakes(name: str) -> Iterator[None]:
    """Turn what goes wrong in the user's problem into one line that names it."""
    try:
        yield
    except (InputError, RunError):
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error
    except ArithmeticError as error:
        lines = "; ".join([str(error), *getattr(error, "__notes__", [])])
        raise RunError(f"{name}: {lines}") from error


def _first(tuning: Tuning) -> Problem:
    return tuning.problem if isinstance(tuning.problem, Problem) else tuning.problem(0)


def _solution(tuning: Tuning, lam: Tree) -> Tree:
    """Return w(λ), the one whose outer objective the engine sees."""
    first = _first(tuning)
    if tuning.online:
        return solve_inner(first, tuning.dynamics, lam, steps=tuning.steps)
    found = hypergradient(first, tuning.dynamics, lam, steps=tuning.steps, engine=tuning.engine)
    return tuning.dynamics.params(found.state)


def _figures(tuning: Tuning, lam: Tree, w: Tree) -> dict[str, float]:
    figures = {OBJECTIVE: float(_first(tuning).outer(w, lam))}
    if tuning.report is not None:
        figures |= {name: float(value) for name, value in tuning.report(lam, w).items()}
    return figures


def _what(tuning: Tuning, request: TuneRequest) -> dict[str, Any]:
    common = {"steps": tuning.steps, "settings": dict(request.settings)}
    if tuning.online:
        return {"engine": "online", "every": tuning.every, **common}
    return {"engine": repr(tuning.engine), "outer_steps": tuning.outer_steps, **common}


def _start_tracking(tuning: Tuning, request: TuneRequest, out: Path) -> Tracker:
    if not request.track:
        return open_tracker(None, run_id=None, warn=warn)
    target = Target(
        uri=default_uri(out),
        experiment=f"tune {_metric(request.name)}",
        run_name=out.name,
    )
    tracker = open_tracker(target, run_id=None, warn=warn)
    if tracker.client is not None:
        RunFolder(out).save_tracking(target.uri, tracker.run_id)
    what = _what(tuning, request)
    params = {f"set.{key}": value for key, value in what.pop("settings").items()}
    tracker.describe(what | params, {"problem": request.name, "title": tuning.title})
    return tracker


def _metric(name: str) -> str:
    """Return a name with the letters that MLflow takes alone."""
    return re.sub(r"[^\w\-. ]+", " ", name).strip()
