"""Backbones by name, so that a configuration can choose one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bilevel_models.backbone import check_backbone
from bilevel_models.backbones.conv_net import c4l, omniglot_net
from bilevel_models.backbones.paper_resnet import rn
from bilevel_models.backbones.resnet12 import resnet12
from bilevel_models.backbones.timm import timm_backbone
from bilevel_models.backbones.torchvision import torchvision_backbone
from bilevel_models.pretrained.weights import pretrained_card, pretrained_weights

__all__ = ["create_model", "list_models", "register_model"]


_MODELS: dict[str, Callable[..., nn.Module]] = {
    "omniglot-net": omniglot_net,
    "c4l": c4l,
    "rn": rn,
    "resnet12": resnet12,
}


_OWN = frozenset(_MODELS)
_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "torchvision": torchvision_backbone,
    "timm": timm_backbone,
}


def list_models() -> tuple[str, ...]:
    """Return the names that `create_model` knows beside those of other libraries, sorted."""
    return tuple(sorted(_MODELS))


def register_model(name: str, make: Callable[..., nn.Module]) -> None:
    """Add a backbone under a new name; `make(**options)` returns a module that is a `Backbone`.

    A configuration's model is made with `channels` and `image_size`, and with `filters` and
    `kernel_size` where it has them. Every new module is given two black images, so that a mistake
    is told at once.

    Raises:
        ValueError: the name is taken.
    """
    if name in _MODELS:
        raise ValueError(f"model {name!r} is registered already: choose another name")
    _MODELS[name] = make


def create_model(name: str, *, pretrained: str | None = None, **options: Any) -> nn.Module:
    """Return a new backbone with fresh weights, drawn from torch's global generator.

    With `pretrained`, one with weights that come with the package, and the options that they are
    for. Their card, in `list_pretrained()`, says how their features are to be used.

    Args:
        name: one of `list_models()`, or `torchvision:NAME` with a classification model of
            torchvision, such as `torchvision:resnet18`, or `timm:NAME` with a model of timm.
        pretrained: the tag of the weights, one of `list_pretrained()`.
        options: the keyword arguments of its function, such as `channels`, `image_size`, `filters`.

    Raises:
        ValueError: no such model, no such option, or a value that it refuses; a registered one that
            is no `Backbone`; no such weights, weights of another model or for other options, or
            damaged ones.
    """
    if pretrained is not None:
        return _pretrained(name, pretrained, options)
    make = _maker(name)
    known = inspect.signature(make).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    if not takes_any and (unknown := options.keys() - known.keys()):
        raise ValueError(
            f"model {name!r} has no option {', '.join(sorted(unknown))}: it has {', '.join(known)}"
        )
    for option, value in options.items():
        default = known[option].default if option in known else None
        if isinstance(default, int) and type(value) is not type(default):
            kind = "true or false" if isinstance(default, bool) else "a whole number"
            raise ValueError(f"model {name!r}: {option}={value!r} must be {kind}")
    made = make(**options)
    if name not in _OWN and ":" not in name:
        check_backbone(name, made, options)
    return made


def _maker(name: str) -> Callable[..., nn.Module]:
    if name in _MODELS:
        return _MODELS[name]
    family, _, member = name.partition(":")
    if family not in _FAMILIES:
        raise ValueError(
            f"no model {name!r}: choose one of {', '.join(list_models())}, torchvision:NAME or "
            "timm:NAME"
        )
    return functools.partial(_FAMILIES[family], member)


def _pretrained(name: str, tag: str, options: Mapping[str, Any]) -> nn.Module:
    card = pretrained_card(tag)
    if name != card.model:
        raise ValueError(f"pretrained {tag!r} is a {card.model!r}, not a {name!r}: name that model")
    for option, value in options.items():
        if card.options.get(option) != value:
            meant = ", ".join(f"{key}={own}" for key, own in card.options.items())
            raise ValueError(
                f"pretrained {tag!r} has {meant}, not {option}={value!r}: leave that option out"
            )
    model = create_model(name, **card.options)
    try:
        model.load_state_dict(pretrained_weights(card))
    except RuntimeError:  # names or shapes that differ, listed over many lines
        raise ValueError(
            f"{tag}.safetensors: not the weights of the model on its card: reinstall bilevel-models"
        ) from None
    return model
