"""Run an item: its folder, the tracker, the files, and what is said of them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from bilevel_apps.errors import RunError
from bilevel_apps.files import check_writable, write_files
from bilevel_apps.paper.item import Item, Report, Scale
from bilevel_apps.paper.render import as_files, claim_line
from bilevel_apps.paper.work import Work
from bilevel_apps.report import warn
from bilevel_apps.run_folder import RunFolder
from bilevel_apps.tracking import Target, Tracker, closing, default_uri, open_tracker

__all__ = ["Request", "run_item"]

EXPERIMENT = "paper"


@final
@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of an item.

    Attributes:
        out: the folder of the files; the records are in NAME/SCALE below it.
        scale: how much to compute.
        seeds: how many data sets; None takes the item's own number.
        track: log to MLflow.
    """

    out: Path
    scale: Scale = Scale.QUICK
    seeds: int | None = None
    track: bool = True


def run_item(item: Item, request: Request) -> tuple[Report, dict[str, Any]]:
    """Compute what is not recorded yet and write the files; returns the report and its JSON.

    A claim that fails is reported and raises nothing.

    Raises:
        InputError: the folder cannot be used.
        RunError: an inner run failed, or a file cannot be written.
    """
    check_writable(request.out)
    seeds = item.seeds[request.scale] if request.seeds is None else request.seeds
    folder = RunFolder(request.out / item.name / request.scale.value)
    with folder.exclusive():
        tracker = _start_tracking(item, request, folder)
        with closing(tracker), _failures(item.name):
            work = Work(
                name=item.name,
                folder=folder.path,
                full=request.scale is Scale.FULL,
                seeds=seeds,
                tracker=tracker,
            )
            report = item.run(work)
            document = _document(item, request, seeds, report)
            paths = write_files(request.out, as_files(item, report, document))
            _log(tracker, report, paths, step=seeds)
    return report, document | {"files": [str(path) for path in paths]}


def _document(item: Item, request: Request, seeds: int, report: Report) -> dict[str, Any]:
    words = ["bilevel-paper", item.name, "--scale", request.scale.value, "--seeds", str(seeds)]
    return {
        "item": item.name,
        "title": item.title,
        "scale": request.scale.value,
        "rows": [dict(row) for row in report.rows],
        "claims": [asdict(claim) for claim in report.claims],
        "settings": dict(report.settings),
        "cost": dict(report.cost),
        "differs": list(report.differs),
        "run": {"command": " ".join([*words, "--out", "DIR"]), **_machine()},
    }


def _machine() -> dict[str, Any]:
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def _start_tracking(item: Item, request: Request, folder: RunFolder) -> Tracker:
    """Begin the item's run, or continue the one that its folder knows of."""
    if not request.track:
        return open_tracker(None, run_id=None, warn=warn)
    known = folder.load_tracking()
    target = Target(
        uri=known.get("uri") or default_uri(request.out),
        experiment=EXPERIMENT,
        run_name=f"{item.name}-{request.scale.value}",
    )
    tracker = open_tracker(target, run_id=known.get("run_id"), warn=warn)
    if tracker.client is not None:
        folder.save_tracking(target.uri, tracker.run_id)
    tracker.describe({}, {"item": item.name, "scale": request.scale.value, "title": item.title})
    return tracker


def _log(tracker: Tracker, report: Report, paths: list[Path], step: int) -> None:
    tracker.describe(report.settings, _claims(report))
    tracker.metrics(step, report.metrics)
    for path in paths:
        tracker.artifact(path)


def _claims(report: Report) -> Mapping[str, str]:
    return {f"claim.{n}": claim_line(claim) for n, claim in enumerate(report.claims, start=1)}


@contextmanager
def _failures(name: str) -> Iterator[None]:
    """Turn an inner run that failed into one line."""
    try:
        yield
    except ArithmeticError as error:
        lines = "; ".join([str(error), *getattr(error, "__notes__", [])])
        raise RunError(f"{name}: {lines}; the parts that were done are kept") from error
