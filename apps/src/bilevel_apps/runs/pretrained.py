"""Weights that come with the package in the place of a run: `pretrained:TAG` for its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bilevel_apps.errors import InputError
from bilevel_apps.runs.checkpoint import Checkpoint
from bilevel_models import pretrained_card, pretrained_head, pretrained_weights

__all__ = ["PREFIX", "pretrained_checkpoint", "pretrained_tag"]

PREFIX = "pretrained:"


def pretrained_tag(path: Path) -> str | None:
    """Return TAG where a command was given `pretrained:TAG` in the place of a run's folder."""
    text = str(path)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def pretrained_checkpoint(tag: str) -> tuple[Checkpoint, int | None]:
    """Return weights as the checkpoint of the run that they are from, and the T to use.

    With the numbers of a `heads.HeadSolver` on their card, heads are solved to their optimum: T is
    None.

    Raises:
        InputError: no such tag, or its files are damaged.
    """
    with _refused(tag):
        card = pretrained_card(tag)
        weights = pretrained_weights(card)
        solver = None if card.head is None else pretrained_head(card)
    tensors: dict[str, Tensor] = {f"model.backbone.{name}": w for name, w in weights.items()}
    for name, value in (("log_lr", card.step_size), ("log_scale", card.scale)):
        tensors[f"model.{name}"] = torch.tensor(math.log(value))
    config = dict(card.training["config"])
    if solver is not None:
        tensors |= {f"model.solver.{name}": t for name, t in solver.state_dict().items()}
        config["inner"] = {**config.get("inner", {}), "steps": None}
    step = card.training["step"]
    record = {
        "step": step,
        "best_accuracy": -1.0,
        "best_step": step,
        "config": config,
        "image_shape": card.image_shape,
        "preprocessing": card.preprocessing,
        "environment": {**card.training["environment"], "data": card.data["splits"]},
    }
    return Checkpoint(tensors=tensors, record=record, file_sha256=card.sha256), (
        card.steps if solver is None else None
    )


@contextmanager
def _refused(tag: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"{PREFIX}{tag}: {error}") from None
