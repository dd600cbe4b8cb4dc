"""Any image model of timm as a backbone."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

from torch import nn

from bilevel_models.backbones.context_norm import explicit_norms
from bilevel_models.backbones.sizes import check_sizes
from bilevel_models.backbones.torchvision import TorchvisionBackbone
from bilevel_models.backbones.torchvision_library import torchvision_module

__all__ = ["timm_backbone"]


def timm_backbone(name: str, *, channels: int = 3, image_size: int = 224) -> TorchvisionBackbone:
    """Return a model of timm without its classifier, with fresh weights.

    Nothing is ever downloaded. Dropout and stochastic depth are left out. Features are what the
    model pools; images are standardised as its published weights expect.

    Args:
        name: such as `resnet18` or `vit_tiny_patch16_224`, without a tag of weights.
        channels: channels of the images, 1 (grey, given as three) or 3.
        image_size: height and width of the images, in pixels.

    Raises:
        ValueError: timm is not installed or has no such model, the model cannot take such images,
            or it normalises batches in another way than `BatchNorm2d`.
    """
    check_sizes(channels=channels, image_size=image_size)
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: timm's models take 1 or 3")
    timm = _timm()
    names = timm.list_models()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5) or names
        raise ValueError(f"timm has no model {name!r}: choose one such as {', '.join(close[:5])}")
    try:
        body = _made(timm, name, image_size)
        config: Any = body.pretrained_cfg
        explicit_norms(body)
        _check_norms(name, body)
        return TorchvisionBackbone(
            body,
            channels=channels,
            image_size=image_size,
            mean=config.get("mean"),
            std=config.get("std"),
        )
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"timm:{name} cannot take images of {image_size}×{image_size}: {reason}"
        ) from None


def _timm() -> Any:
    try:
        torchvision_module("torchvision")  # timm imports it, and it may need a second try
        return import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ValueError(
            "timm is not installed: install bilevel-models with its extra [timm]"
        ) from None


def _made(timm: Any, name: str, image_size: int) -> nn.Module:
    options = {"pretrained": False, "num_classes": 0, "drop_rate": 0.0}
    body: nn.Module
    try:  # a transformer's weights are of the size of its images
        body = timm.create_model(name, img_size=image_size, **options)
    except TypeError:
        body = timm.create_model(name, **options)
    return body


def _check_norms(name: str, body: nn.Module) -> None:
    left = {
        type(m).__name__ for m in body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    if left:
        raise ValueError(
            f"timm:{name} normalises by {', '.join(sorted(left))}, whose statistics cannot be "
            "told: choose another model"
        )
