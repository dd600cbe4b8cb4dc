"""Any classification model of torchvision as a backbone."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from bilevel_models.backbones.context_norm import explicit_norms, using
from bilevel_models.backbones.sizes import check_sizes
from bilevel_models.backbones.torchvision_library import torchvision_module
from bilevel_models.normalization import EACH_SET, RUNNING, Statistics

__all__ = ["TorchvisionBackbone", "torchvision_backbone"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLASSES = 1000  # what torchvision's models tell apart, and what marks their last layer


@final
class TorchvisionBackbone(nn.Module):
    """A torchvision model without its classifier, whose batch normalisation is told its statistics.

    Images (n, channels, height, width) in [0, 1] become features (n, dim): what went into the last
    layer. They are standardised first, as torchvision's weights expect; images of one channel
    become grey ones of three. A model without batch normalisation gives the same features with any
    statistics.

    Args:
        body: the model, without classifier, dropout and `BatchNorm2d`.
        channels: 1 or 3.
        image_size: height and width of the images, in pixels.
        mean: of the colours of standardised images, ImageNet's by default.
        std: likewise their standard deviation.

    Raises:
        AssertionError, RuntimeError or ValueError: the body cannot take such images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        channels: int,
        image_size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        for name, rgb in (("mean", mean or _MEAN), ("std", std or _STD)):
            values = torch.tensor(tuple(rgb)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        with torch.no_grad():
            image = torch.zeros(1, channels, image_size, image_size)
            self.dim: int = self(image, RUNNING).shape[1]

    def forward(self, images: Tensor, statistics: Statistics = EACH_SET) -> Tensor:
        """Return features (n, dim) of images (n, channels, height, width)."""
        with using(statistics):
            features: Tensor = self.body((images - self.mean) / self.std)
        return features

    def from_library(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the library's own names under those that this module has.

        Those of a classifier, and counts of batches, are left out.

        Raises:
            ValueError: one is missing.
        """
        found = {}
        for name in self.state_dict():
            theirs = name.removeprefix("body.").replace(".0.norm.", ".").replace(".norm.", ".")
            plain = name.removeprefix("body.")
            key = plain if plain in tensors else theirs
            if key not in tensors:
                raise ValueError(f"the weights are not this model's: they have no {theirs!r}")
            found[name] = tensors[key]
        return found


def torchvision_backbone(
    name: str,
    *,
    channels: int = 3,
    image_size: int = 224,
    weights: Mapping[str, Tensor] | None = None,
) -> TorchvisionBackbone:
    """Return a torchvision classification model as a backbone, by default with fresh weights.

    Nothing is ever downloaded. Dropout and stochastic depth are left out, so that features are a
    function of images, weights and statistics alone.

    Args:
        name: such as `resnet18`; one of torchvision's classification models.
        channels: channels of the images, 1 or 3.
        image_size: height and width of the images, in pixels; of some models (`vit_b_16`) it
            decides the weights' shapes and must be a multiple of their patches.
        weights: the model's state, by torchvision's names; those of its classifier are not needed.

    Raises:
        ValueError: torchvision is not installed or has no such model, the model cannot take such
            images, or the weights do not fit it.
    """
    check_sizes(channels=channels, image_size=image_size)
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: torchvision's models take 1 or 3")
    models = torchvision_module("torchvision.models")
    _check_name(name, models.list_models(module=models))
    options = _options(name, image_size, pretrained=weights is not None)
    with _fitting(name, image_size):
        body = models.get_model(name, weights=None, **options)
    _remove_classifier(body)
    _remove_dropout(body)
    if weights is not None:
        _load(body, weights)
    explicit_norms(body)
    with _fitting(name, image_size):
        return TorchvisionBackbone(body, channels=channels, image_size=image_size)


@contextmanager
def _fitting(name: str, image_size: int) -> Iterator[None]:
    """Name the model and the size where torchvision's own code finds that they do not fit."""
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"torchvision:{name} cannot take images of {image_size}×{image_size}: {reason}"
        ) from None


def _check_name(name: str, names: list[str]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5) or sorted(names)
        raise ValueError(
            f"torchvision has no classification model {name!r}: choose one such as "
            f"{', '.join(close)}"
        )


def _options(name: str, image_size: int, *, pretrained: bool) -> dict[str, Any]:
    """Return what some models must be told."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):
        # Their published weights want images scaled otherwise, which transform_input undoes.
        return {"aux_logits": False, "init_weights": True, "transform_input": pretrained}
    return {}


def _remove_classifier(body: nn.Module) -> None:
    """Take off the last layer with an output a class."""
    layers = [
        path
        for path, module in body.named_modules()
        if _CLASSES in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
    ]
    body.set_submodule(layers[-1], nn.Identity())


def _remove_dropout(body: nn.Module) -> None:
    kinds = nn.Dropout, torchvision_module("torchvision.ops").StochasticDepth
    for path, module in list(body.named_modules()):
        if isinstance(module, kinds):
            body.set_submodule(path, nn.Identity())


def _load(body: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = body.state_dict()
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    for key in needed:
        if key not in weights:
            raise ValueError(f"the weights are not this model's: they have no {key!r}")
        if weights[key].shape != own[key].shape:
            raise ValueError(
                f"the weights are not this model's: {key!r} has shape {tuple(weights[key].shape)} "
                f"instead of {tuple(own[key].shape)}"
            )
    body.load_state_dict({key: weights.get(key, own[key]) for key in own})
