"""A run's weights and card, made ready to come with `bilevel-models`."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import safetensors.torch

from bilevel_apps.config import Config, TrackingSection, list_presets, load_preset, parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.report import EvaluationReport
from bilevel_apps.runs.build import backbone_options
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import SETTLED
from bilevel_apps.runs.load import TrainedRun, load_run
from bilevel_apps.runs.record import read_record
from bilevel_apps.system.files import check_writable, read_json, write_files
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_models import create_model
from bilevel_models.pretrained.card import Card, parse_card
from bilevel_models.pretrained.weights import HEAD, LARGEST, parse_weights

__all__ = ["PublishRequest", "command_of", "publish_run"]

KEPT = ("split", "split_sha256", "way", "shot", "query", "episodes", "seed", "rotations")
MEASURED = ("accuracy", "ci95")
# What a run is told about the machine it is on: no part of what it is.
LOCAL = ("data", "device", "threads", "tracking")


@final
@dataclass(frozen=True, kw_only=True)
class PublishRequest:
    """What to call the weights, and what is known of them.

    Attributes:
        tag: their name.
        reports: files of `bilevel-eval --json` for this checkpoint, one or more.
        data: another place of the run's store.
    """

    tag: str
    reports: Sequence[Path]
    data: Path | None = None


def publish_run(folder: Path, out: Path, request: PublishRequest) -> list[Path]:
    """Write `TAG.safetensors`, the best checkpoint's weights or their average, and `TAG.json`.

    Raises:
        InputError: the run, its store or a report cannot be used or do not belong together, the
            weights are too large, or the tag is taken.
        RunError: a file cannot be written.
        bilevel_data.DataError: the store cannot be used.
    """
    names = [f"{request.tag}.{suffix}" for suffix in ("safetensors", "json")]
    check_writable(out)
    for name in names:
        if (out / name).exists():
            raise InputError(f"{out / name}: exists already: choose another --tag, or remove it")
    run = load_run(folder, "cpu")
    run.require_pictures("publishing")
    content = _weights(run)
    card = _card(run, content, request)
    return write_files(out, dict(zip(names, (content, card.to_json().encode()), strict=True)))


def command_of(config: Config, data: str) -> str:
    """Return the command that trains with these settings on a data set of this name.

    With the preset, of those for the data set if there are any, from which the least differs.
    """
    differing = {name: _differing(config, name) for name in list_presets()}
    preset = min(differing, key=lambda name: (data not in name, len(differing[name])))
    words = ["bilevel-train", "--preset", preset, "--data", shlex.quote(f"{data}.h5")]
    words += ["--out", f"runs/{preset.rpartition('/')[2]}"]
    for key, value in differing[preset].items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", shlex.quote(f"{key}={text}")]
    return " ".join(words)


def _differing(config: Config, preset: str) -> dict[str, Any]:
    base = parse_config(load_preset(preset), preset).flat()
    return {
        key: value
        for key, value in config.flat().items()
        if key.partition(".")[0] not in LOCAL
        and value != base.get(key)
        and not (key in SETTLED and base.get(key) in (None, "auto"))
    }


def _weights(run: TrainedRun) -> bytes:
    state = run.representation.backbone.state_dict()
    if run.representation.solver is not None:
        state[f"{HEAD}running_mean"] = run.representation.solver.running_mean
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors)
    if len(content) > LARGEST:
        raise InputError(
            f"{run.path}: {len(content)} bytes of weights, more than {LARGEST}: too large to come "
            "with a package: pass the checkpoint on by itself"
        )
    return content


def _card(run: TrainedRun, content: bytes, request: PublishRequest) -> Card:
    if run.config.train.mix:
        raise InputError(
            f"{run.path}: trained on several stores (train.mix), and a card names one: train on "
            "one store to publish"
        )
    store = run.store(request.data)
    splits = {name: info.sha256 for name, info in store.manifest.splits.items()}
    if splits != run.data:
        raise InputError(
            f"{store.path}: its images are not those that the run was trained on: name the run's "
            "own store with --data"
        )
    model, learner = run.config.model, run.representation
    height, width, channels = run.image_shape
    accuracy = tuple(_measured(path, run) for path in request.reports)
    try:
        card = Card(
            tag=request.tag,
            model=model.name,
            options=backbone_options(run.config, run.image_shape),
            image_shape=(height, width, channels),
            preprocessing=store.manifest.preprocessing.as_dict(),
            data={
                "name": store.manifest.name,
                "source": store.manifest.source,
                "licence": store.manifest.licence,
                "splits": splits,
            },
            normalization=model.norm,
            unit_length=model.unit_length,
            steps=learner.steps,
            # In float64, so that the logarithm is the model's own again.
            step_size=float(learner.log_lr.detach().double().exp()),
            scale=float(learner.log_scale.detach().double().exp()),
            head=_head_numbers(learner),
            accuracy=accuracy,
            training=_training(run, store.manifest.name),
            sha256=hashlib.sha256(content).hexdigest(),
        )
    except ValueError as error:
        raise InputError(f"--tag {request.tag}: no card can be written: {error}") from None
    _check(card, content)
    return card


def _head_numbers(learner: HyperRepresentation) -> dict[str, float] | None:
    """Return what a `heads.HeadSolver` is made of, but for its running mean."""
    if learner.solver is None:
        return None
    numbers = learner.solver.named_parameters()
    return {name.removeprefix("log_"): float(x.detach().double().exp()) for name, x in numbers}


def _measured(path: Path, run: TrainedRun) -> dict[str, Any]:
    """Return what a report says, if it is about this checkpoint with this T and η."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: give JSON of bilevel-eval --json") from None
    except ValueError:
        raise InputError(f"{path}: expected JSON of bilevel-eval --json") from None
    try:
        report = EvaluationReport.of(found)
    except ValueError:
        raise InputError(f"{path}: expected a report of bilevel-eval --json") from None
    asked = {
        "checkpoint_sha256": (report.checkpoint_sha256, run.sha256),
        "steps": (report.inner.steps, run.inner.steps),
        "lr": (report.inner.lr, run.inner.lr),
        "norm": (report.norm, run.config.model.norm),
    }
    for key, (told, own) in asked.items():
        if told != own:
            raise InputError(
                f"{path}: is about {key} {told}, but the run has {own}: evaluate it anew"
            )
    if run.data.get(report.split) != report.split_sha256:
        raise InputError(f"{path}: its episodes are not of the run's own data: evaluate it anew")
    kept = report.as_json()
    return {key: kept[key] for key in (*KEPT, *MEASURED, "upright") if key in kept}


def _training(run: TrainedRun, data: str) -> dict[str, Any]:
    environment = read_record(load_checkpoint(run.path), run.path).environment
    config = run.config.model_copy(
        update={"data": None, "device": "auto", "threads": None, "tracking": TrackingSection()}
    )
    return {
        "seed": config.seed,
        "step": run.step,
        "command": command_of(config, data),
        "config": config.model_dump(mode="json"),
        "environment": environment.model_dump(mode="json", exclude={"data", "mix"}),
    }


def _check(card: Card, content: bytes) -> None:
    """Read card and weights back as the package will."""
    read = parse_card(card.to_json(), card.tag)
    tensors = parse_weights(content, read, card.tag)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}
    try:
        create_model(read.model, **read.options).load_state_dict(own)
    except RuntimeError:
        raise InputError(
            f"--tag {card.tag}: its weights are not those of {read.model} alone (model.outputs?): "
            "publish a run without a linear layer at the network's end"
        ) from None
    if read != card or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise InputError(f"--tag {card.tag}: not finite, or not read back as it was written")
