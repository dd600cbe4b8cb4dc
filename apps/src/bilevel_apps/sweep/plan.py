"""What a sweep runs: settings in common, what varies, and whether a folder's sweep is the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from pydantic import TypeAdapter, ValidationError

from bilevel_apps.config import Config, flatten, parse_config, with_settings
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import store_of
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.sweep.axes import Axis, Choices, Settings, parse_axes
from bilevel_apps.sweep.folder import SweepFolder
from bilevel_apps.sweep.samplers import Proposals, proposals
from bilevel_apps.sweep.table import Child
from bilevel_apps.system.hardware import choose_device
from bilevel_apps.system.processes import ALONE
from bilevel_apps.training.prepare import prepare, resolve
from bilevel_data import Store

__all__ = ["Plan", "check_plan", "child_config", "continued"]


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to vary, and how.

    Attributes:
        axes: as `--sweep` takes them, such as `inner.steps=3,5` or `train.lr=1e-4..1e-2`.
        sampler: grid, random or tpe.
        trials: how many settings random and tpe propose.
    """

    axes: tuple[str, ...]
    sampler: str = "grid"
    trials: int | None = None

    def proposals(self, seed: int) -> Proposals:
        """Return the settings, one after the other.

        Raises:
            InputError: the plan cannot be used.
        """
        return proposals(parse_axes(self.axes), self.sampler, self.trials, seed)


def child_config(given: Config, settings: Settings) -> Config:
    """Return the common settings with those of a child.

    Raises:
        InputError: a value of the wrong type or range.
    """
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    common = given.model_dump(mode="json", exclude_unset=True)
    return parse_config(with_settings(common, words), f"`axes`={' '.join(words)}")


def check_plan(given: Config, plan: Plan, store: Store) -> None:
    """Refuse, before anything is written, a value that no child can have, or a first child.

    Raises:
        InputError, bilevel_data.DataError: a child would be refused.
    """
    axes = parse_axes(plan.axes)
    for axis in axes:
        for value in _extremes(axis):
            child_config(given, {axis.key: value})
    first = child_config(given, next(plan.proposals(given.seed)))
    device = choose_device(first.device)
    own = store if first.data == given.data else store_of(first.data)
    settled = resolve(first, own, device, ALONE)
    prepare(settled, RunFolder(Path()), own, device, ALONE)


def _extremes(axis: Axis) -> Sequence[Any]:
    """Return the values, or the bounds, of an axis."""
    domain = axis.domain
    if isinstance(domain, Choices):
        return domain.values
    return [int(b) if domain.whole else b for b in (domain.low, domain.high)]


def continued(
    folder: SweepFolder, given: Config, plan: Plan | None
) -> tuple[Config, Plan, list[Child]]:
    """Return what the folder's sweep is, if what was given explicitly agrees with it.

    The device and the store's place may change, and so may the number of trials, to those that were
    made or more.

    Raises:
        InputError: a setting differs, or the record is damaged.
    """
    document, settings, children = folder.load()
    try:
        kept = TypeAdapter(Plan).validate_python(document)
    except ValidationError:
        raise folder.damaged() from None
    saved = parse_config(settings, str(folder.file))
    if plan is not None:
        if (plan.axes, plan.sampler) != (kept.axes, kept.sampler):
            words = " ".join(f"`axes`={axis}" for axis in kept.axes)
            raise InputError(
                f"{folder.path}: its sweep is {words} `sampler`={kept.sampler}: resume with the "
                "same, or choose another `out`"
            )
        tried = 0 if kept.trials is None else len(children)
        if plan.trials is not None and plan.trials < tried:
            raise InputError(
                f"{folder.path}: its sweep has tried {tried} settings: give `trials`={tried} or "
                f"more, not {plan.trials}, or choose another `out`"
            )
        kept = replace(kept, trials=plan.trials)
    before, now = saved.flat(), flatten(given.model_dump(mode="json", exclude_unset=True))
    free = {key: now.pop(key) for key in ("device", "data") if now.get(key) is not None}
    for key, value in now.items():
        if value != before[key]:
            raise InputError(
                f"{folder.path}: the sweep has {key}={before[key]}, but {key}={value} was given: "
                "resume with the same settings, or choose another `out`"
            )
    merged = saved.model_dump(mode="json", exclude_unset=True) | free
    return parse_config(merged, str(folder.file)), kept, children
