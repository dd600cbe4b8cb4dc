"""Cells of a table that are trained: each in a run folder of its own, and scored as any run is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, final

import torch

from bilevel_apps.config import Config, load_preset, parse_config, with_settings
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.evaluate.report import EvaluationReport
from bilevel_apps.paper.harness.cache import Part, Work
from bilevel_apps.runs.build import store_of
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.load import TrainedRun, load_run
from bilevel_apps.runs.record import RunRecord, read_record
from bilevel_apps.system.hardware import own_threads
from bilevel_apps.system.terminal import say, warn
from bilevel_apps.tracking.place import record_of
from bilevel_apps.tracking.run import begin_child
from bilevel_apps.tracking.tracker import mlflow_client, one_line
from bilevel_apps.training.loop import train

__all__ = [
    "Cell",
    "cost_of",
    "data_name",
    "evaluation",
    "held_out",
    "score_cells",
    "unseen",
    "validations",
]

VALIDATED = 1_000_000
"""The seed of episodes for a report on validation classes: above those of trainings."""


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """A training, and what its best weights are scored on.

    Attributes:
        name: of its record, with `-` for `/`.
        preset: what is trained.
        training: the folder of a training that several cells are scored on; empty: its own.
        store: the images.
        settings: changes of the preset, `key=value` each, with those of the command line.
        request: what is scored; the store is put in.
        like: the settings that a run that is given for it must have too.
    """

    name: str
    preset: str
    store: Path
    training: str = ""
    settings: tuple[str, ...] = ()
    request: EvaluationRequest
    like: tuple[str, ...] = ("model.name", "method")

    @property
    def record(self) -> str:
        """The name of its record."""
        return self.name.replace("/", "-")

    @property
    def folder(self) -> str:
        """The name of the folder of its training."""
        return self.training or self.record


def data_name(store: Path) -> str:
    """Return the data set that a store is of."""
    return store_of(store).manifest.name


def held_out(store: Path) -> str:
    """Return the split whose classes nothing was chosen on, or else that of the validation."""
    return "test" if "test" in store_of(store).splits else "val"


def unseen(split: str, **options: Any) -> EvaluationRequest:
    """Return a request for episodes of a split that no checkpoint was chosen on.

    Validations of a training take the episodes of its own seed; of other seeds are others of the
    same classes.

    Args:
        split: which.
        options: the others of the request.
    """
    return EvaluationRequest(split=split, seed=VALIDATED if split == "val" else 0, **options)


def score_cells(work: Work, cells: Sequence[Cell]) -> dict[str, list[Part]]:
    """Train what is not trained yet and score it; returns the parts of each cell, one a seed.

    A training that was stopped goes on from its checkpoint. A cell for which a run was given
    (`Work.runs`) is scored with that one's weights.

    A part's result is that of `evaluate_run` as JSON (`evaluation`), and beside it

        data, filters, trained_seed, trained_inner_steps: what it was trained on, and how
        hyper_iterations, validation: of the training, and its best score, as its record has them
        validations: [hyper-iterations, seconds, accuracy] of each, where MLflow has them
        training: the name of its folder; absent of a run that was given
        trained_seconds, from_step: what the training took since it was stopped, or since its
            beginning, and where that was; of a run that was given, until the last validation

    Raises:
        InputError: a setting, a store or a given run cannot be used.
        RunError: a training failed; what was done before it is kept.
    """
    _check_request(work, {cell.name for cell in cells})
    todo: dict[str, Callable[[], Mapping[str, Any]]] = {}
    own: dict[str, Mapping[str, Any]] = {}
    keys: dict[str, list[str]] = {}
    for cell in cells:
        given = work.runs.get(cell.name)
        for seed in range(work.seeds if given is None else 1):
            end = f"seed-{seed}" if given is None else "given"
            key = f"{cell.record}-{end}"
            job = _Job(work=work, cell=cell, key=key, seed=seed, given=given)
            todo[key], own[key] = job.score, job.decisive()
            keys.setdefault(cell.name, []).append(key)
    parts = {part.key: part for part in work.parts(todo, {}, own, bar=False)}
    return {name: [parts[key] for key in found] for name, found in keys.items()}


def evaluation(part: Part) -> EvaluationReport:
    """Return what the weights of a part came to."""
    return EvaluationReport.of(part.result)


def _check_request(work: Work, names: set[str]) -> None:
    """Refuse what would be of no use to the cells that are computed.

    Raises:
        InputError: a run is of none of them, or settings are changed and nothing is trained.
    """
    for name, run in work.runs.items():
        if name not in names:
            raise InputError(
                f"`runs`={name}={run}: {name} is not among what is computed: name it with `only`"
            )
    if work.assignments and names <= work.runs.keys():
        raise InputError(
            f"`assignments`={work.assignments[0]}: nothing is trained where every part has a run: "
            "leave `assignments` out"
        )


@final
@dataclass(frozen=True, kw_only=True)
class _Job:
    """A cell with one seed."""

    work: Work
    cell: Cell
    key: str
    seed: int
    given: Path | None

    @property
    def path(self) -> Path:
        return self.given or self.work.folder / f"{self.cell.folder}-seed-{self.seed}"

    def decisive(self) -> dict[str, Any]:
        """Return all that decides the result."""
        request = replace(self.cell.request, data=None, plot=None, device="auto")
        manifest = store_of(self.cell.store).manifest
        settings = {
            "request": asdict(request),
            "data": {name: split.sha256 for name, split in manifest.splits.items()},
        }
        if self.given is not None:
            with own_threads():
                run = load_run(self.given, "auto")
            self._check(run)
            inner = run.inner._asdict()
            return settings | {"checkpoint": run.sha256, "inner": inner}
        kept = self._config().flat()
        for key in ("data", "device", "threads"):
            del kept[key]
        trained = {key: v for key, v in kept.items() if not key.startswith("tracking.")}
        return settings | {"training": trained}

    def _check(self, run: TrainedRun) -> None:
        """Refuse a run that is not of the cell, whose figure would stand in its row.

        Raises:
            InputError: it differs in what makes the cell.
        """
        found, expected = run.config.flat(), self._config().flat()
        if "inner.steps" in self.cell.like and run.inner.steps != found["inner.steps"]:
            raise InputError(
                f"`runs`={self.cell.name}={self.given}: another T than that of its training was "
                "chosen for it: give a copy without chosen.json"
            )
        for key in self.cell.like:
            if found[key] != expected[key]:
                raise InputError(
                    f"`runs`={self.cell.name}={self.given}: a run with {key}={found[key]}, but the "
                    f"cell is of {key}={expected[key]}: give another run, or leave it out"
                )

    def score(self) -> dict[str, Any]:
        """Train, unless a run was given, and score the best weights."""
        with own_threads():
            trained = {} if self.given is not None else self._train()
            request = replace(self.cell.request, data=self.cell.store)
            report = evaluate_run(self.path, request).as_json()
            config = load_run(self.path, "auto").config
        for key in ("checkpoint", "picture"):  # where they are on this machine
            report.pop(key, None)
        more = {
            "data": data_name(self.cell.store),
            "trained_seed": config.seed,
            "trained_inner_steps": config.inner.steps,
            "filters": config.model.filters,
        }
        return report | more | _history(RunFolder(self.path)) | trained

    def _config(self) -> Config:
        assignments = (*self.cell.settings, f"seed={self.seed}")
        settings = with_settings(load_preset(self.cell.preset), assignments)
        return parse_config(settings | {"data": str(self.cell.store.resolve())}, "`assignments`")

    def _train(self) -> dict[str, Any]:
        """Begin or go on with the training; returns what `score_cells` says of its course."""
        folder, config, target = RunFolder(self.path), self._config(), self.work.target
        if folder.began():
            config = folder.continued(config)
        else:
            # Without these: a run goes on with what it began with.
            tracking = config.tracking.model_copy(update={"enabled": target is not None})
            threads = config.threads or torch.get_num_threads()
            config = config.model_copy(update={"tracking": tracking, "threads": threads})
        if target is not None:
            named = replace(target, run_name=f"{self.work.name}-{self.key}")
            begin_child(self.work.tracker, named, folder)
        say(f"{self.work.name}: {self.key}")
        before, began = self._before(_step(folder)), time.perf_counter()
        train(config, folder.path, resume=True)
        return {
            "training": self.path.name,
            "trained_seconds": before["trained_seconds"] + time.perf_counter() - began,
            "from_step": before["from_step"],
            "validations": _joined(before, validations(folder)),
        }

    def _before(self, step: int) -> Mapping[str, Any]:
        """Return what is known of a training's course until a hyper-iteration.

        A part of the same training that ended there says it: of another cell, or of this one, which
        is given more of them now. What a process took that was stopped is lost.
        """
        for part in self.work.earlier():
            same = part.key == self.key or part.result.get("training") == self.path.name
            if same and part.result.get("hyper_iterations") == step:
                return cast(Mapping[str, Any], part.result)
        return {"trained_seconds": 0.0, "from_step": step}


def _joined(before: Mapping[str, Any], curve: list[list[float]]) -> list[list[float]]:
    """Return the validations of a training that went on.

    Those before come first where the tracker does not know them: where it is another one since.

    Args:
        before: the result of the part that ended where the training went on.
        curve: what the tracker has.
    """
    known: list[list[float]] = before.get("validations") or []
    if not known or (curve and curve[0][0] <= known[0][0]):
        return curve
    passed, last = before["trained_seconds"], known[-1][0]
    return known + [[step, passed + seconds, a] for step, seconds, a in curve if step > last]


def _history(folder: RunFolder) -> dict[str, Any]:
    """Return what a run's folder and its tracker know of the training."""
    if not folder.last.exists():
        return {}
    record, curve = _last(folder), validations(folder)
    return {
        "hyper_iterations": record.step,
        "validation": record.best_accuracy,
        "validations": curve,
        "trained_seconds": curve[-1][1] if curve else None,
    }


def _step(folder: RunFolder) -> int:
    return _last(folder).step if folder.last.exists() else 0


def _last(folder: RunFolder) -> RunRecord:
    return read_record(load_checkpoint(folder.last), folder.last)


def validations(folder: RunFolder) -> list[list[float]]:
    """Return what the tracker has of a training: [hyper-iterations, seconds, accuracy] each.

    The seconds are those of the clock since the run began, pauses included.
    """
    known = record_of(folder)
    if known is None:
        return []
    try:
        client = mlflow_client(known.uri)
        history = client.get_metric_history(known.run_id, "val/accuracy")
        start = client.get_run(known.run_id).info.start_time
    except Exception as error:  # a tracker's failure, of any kind, must not end the command
        warn(one_line(f"no curve from {known.uri}", error))
        return []
    # A validation that was made again after a kill is there twice.
    found = {
        entry.step: [entry.step, (entry.timestamp - start) / 1000, entry.value] for entry in history
    }
    return [found[step] for step in sorted(found)]


def cost_of(parts: Sequence[Part]) -> dict[str, Any]:
    """Return what the cells took, for a report; a training that several are of counts once."""
    trainings = {part.result.get("training", part.key): part.result for part in parts}
    resumed = [name for name, found in trainings.items() if found.get("from_step")]
    cost: dict[str, Any] = {
        "hyper-iterations": [f.get("hyper_iterations", "given") for f in trainings.values()],
        "seconds of training": [_seconds(f.get("trained_seconds")) for f in trainings.values()],
        "seconds": sum(part.seconds for part in parts),
    }
    if resumed:
        cost["resumed"] = f"{', '.join(resumed)}: the seconds are those since then"
    return cost


def _seconds(value: float | None) -> str:
    return "given" if value is None else f"{value:.1f}"
