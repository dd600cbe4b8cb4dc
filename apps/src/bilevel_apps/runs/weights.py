"""Weights that a training begins with, in the place of fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import model_tensors, part_of
from bilevel_apps.runs.checkpoint import load_checkpoint, load_plain, tensors_sha256
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.pretrained import pretrained_checkpoint, pretrained_tag
from bilevel_models.backbones.torchvision import TorchvisionBackbone

__all__ = ["backbone_sha256", "load_backbone"]


def load_backbone(backbone: nn.Module, source: str) -> None:
    """Give a backbone the weights, and the running averages, of another training.

    Heads are trained as the configuration says: nothing else is taken from a run.

    Args:
        backbone: what is to have them.
        source: the folder of a run (its best checkpoint), a checkpoint, `pretrained:TAG`, or a
            safetensors file that has a backbone's tensors under their own names, or, for a network
            of torchvision or timm, under the library's.

    Raises:
        InputError: it cannot be read, or its tensors are not those of the backbone: one by one
            of the same name and shape, and finite.
    """
    found = _backbone_tensors(Path(source))
    own = backbone.state_dict()
    if isinstance(backbone, TorchvisionBackbone) and not own.keys() <= found.keys():
        try:  # as the library publishes them
            found = backbone.from_library(found)
        except ValueError as error:
            raise InputError(f"model.weights={source}: {error}: give others") from None
    for name in sorted(own.keys() | found.keys()):
        theirs, ours = (_shape(tensors.get(name)) for tensors in (found, own))
        if theirs != ours:
            raise InputError(
                f"model.weights={source}: {name} is {theirs} there and {ours} in this network: "
                "give weights of the same model, filters and channels, or change those"
            )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise InputError(f"model.weights={source}: not all finite numbers: give other weights")
    backbone.load_state_dict(found)


def backbone_sha256(backbone: nn.Module) -> str:
    """Return the SHA-256 of a backbone's weights and running averages, wherever they are."""
    state = backbone.state_dict()
    return tensors_sha256({name: each.cpu().contiguous() for name, each in state.items()})


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"


def _backbone_tensors(path: Path) -> Mapping[str, Tensor]:
    tag = pretrained_tag(path)
    if tag is not None:
        return part_of(model_tensors(pretrained_checkpoint(tag)[0].tensors), "backbone")
    if path.is_dir():
        run = RunFolder(path)
        path = run.best if run.best.exists() else run.last
    plain = load_plain(path)
    if plain is not None:
        return plain
    return part_of(model_tensors(load_checkpoint(path).tensors), "backbone")
