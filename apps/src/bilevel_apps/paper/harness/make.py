"""Run an item: its folder, the tracker, the files, and what is said of them."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bilevel_apps.errors import RunError
from bilevel_apps.paper.harness.cache import Work
from bilevel_apps.paper.harness.item import Item, Report, Scale
from bilevel_apps.paper.harness.render import as_files, claim_line
from bilevel_apps.paper.harness.request import (
    ItemRequest,
    check_options,
    runs_of,
    store_for,
    stores_of,
)
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.pretrained import pretrained_tag
from bilevel_apps.system.files import check_writable, write_files
from bilevel_apps.system.hardware import choose_device
from bilevel_apps.system.machine import machine_name, versions
from bilevel_apps.system.terminal import warn
from bilevel_apps.tracking.address import default_uri
from bilevel_apps.tracking.place import record_of
from bilevel_apps.tracking.tracker import Target, Tracker, closing, open_tracker

__all__ = ["ItemRequest", "run_item"]

EXPERIMENT = "paper"


def run_item(item: Item, request: ItemRequest) -> tuple[Report, dict[str, Any]]:
    """Compute what is not recorded yet and write the files; returns the report and its JSON.

    A claim that fails is reported and raises nothing.

    Raises:
        InputError: the folder or a store cannot be used, or the item has no use for an option.
        bilevel_data.DataError: a store cannot be used.
        RunError: an inner run failed, or a file cannot be written.
    """
    check_options(item, request)
    runs = runs_of(item, request)
    stores = stores_of(item, request)
    check_writable(request.out)
    seeds = item.seeds[request.scale] if request.seeds is None else request.seeds
    folder = RunFolder(request.out / item.name / request.scale.value)
    with folder.exclusive():
        tracker, target = _start_tracking(item, request, folder)
        with closing(tracker), _failures(item.name):
            work = Work(
                name=item.name,
                folder=folder.path,
                full=request.scale is Scale.FULL,
                seeds=seeds,
                tracker=tracker,
                data=None if item.data is None else store_for(item.data, stores),
                stores=stores,
                only=request.only,
                assignments=request.assignments,
                runs=runs,
                target=target,
            )
            report = item.run(work)
            document = _document(item, request, seeds, tuple(stores), report)
            paths = write_files(request.out, as_files(item, report, document))
            _log(tracker, report, paths, step=seeds)
    return report, document | {"files": [str(path) for path in paths]}


def _document(
    item: Item, request: ItemRequest, seeds: int, stores: Sequence[str], report: Report
) -> dict[str, Any]:
    words = ["bilevel-paper", item.name, "--scale", request.scale.value, "--seeds", str(seeds)]
    for option, values in (
        ("--data", [f"{name}.h5" for name in stores]),
        ("--only", request.only),
        ("--set", request.assignments),
        ("--run", [_shown(cell, run) for cell, run in runs_of(item, request).items()]),
    ):
        words += [word for value in values for word in (option, value)]
    threads = torch.get_num_threads()
    words += ["--threads", str(threads)] if threads != 1 else []
    return {
        "item": item.name,
        "title": item.title,
        "scale": request.scale.value,
        "rows": [dict(row) for row in report.rows],
        "claims": [asdict(claim) for claim in report.claims],
        "settings": dict(report.settings),
        "cost": dict(report.cost),
        "differs": list(report.differs),
        "run": {"command": shlex.join([*words, "--out", "DIR"]), **_machine()},
    }


def _shown(cell: str, run: Path) -> str:
    """Return a run as on the command line, without the place where it is on this machine."""
    name = run.name if pretrained_tag(run) is None else str(run)
    return f"{cell}={name}" if cell else name


def _machine() -> dict[str, Any]:
    return {
        "machine": machine_name(str(choose_device("auto"))),
        "threads": torch.get_num_threads(),
        "versions": versions(platform.python_version(), str(torch.__version__)),
    }


def _start_tracking(
    item: Item, request: ItemRequest, folder: RunFolder
) -> tuple[Tracker, Target | None]:
    """Begin the item's run, or continue the one that its folder knows of."""
    if not request.track:
        return open_tracker(None, run_id=None, warn=warn), None
    known = record_of(folder)
    target = Target(
        uri=default_uri(request.out) if known is None else known.uri,
        experiment=EXPERIMENT,
        run_name=f"{item.name}-{request.scale.value}",
    )
    tracker = open_tracker(target, run_id=None if known is None else known.run_id, warn=warn)
    if tracker.client is not None:
        folder.save_tracking(target.uri, tracker.run_id)
    tracker.describe({}, {"item": item.name, "scale": request.scale.value, "title": item.title})
    return tracker, target


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
