"""Backbones of somebody's own: what is no backbone is told in one line, before it trains."""

import pytest
import torch
from torch import nn

from bilevel_models import Encoder, Normalization, create_model, register_model, registry

SIZE = {"channels": 1, "image_size": 8}


class Flat(nn.Module):
    """Pixels through one linear layer, and what else is given."""

    def __init__(self, *more, dim=4, told=4):
        super().__init__()
        self.dim = told
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, dim), *more)

    def forward(self, images, statistics=None):
        del statistics
        return self.layers(images)


@pytest.fixture
def made(monkeypatch):
    """Register a module and make it as a configuration would."""
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    def make(module, **options):
        register_model("mine", lambda channels, image_size: module)
        return create_model("mine", **(options or SIZE))

    return make


def test_a_backbone_of_ones_own(made):
    assert made(Flat()).dim == 4


def test_options_of_any_name(monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    register_model("open", lambda **options: Flat(dim=options["filters"], told=options["filters"]))
    assert create_model("open", **SIZE, filters=6).dim == 6


class NoStatistics(Flat):
    def forward(self, images):
        return self.layers(images)


class Failing(Flat):
    def forward(self, images, statistics=None):
        raise AssertionError("not so")


class NoDim(Flat):
    def __init__(self):
        super().__init__()
        del self.dim


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (NoDim(), "model 'mine': dim=None: expected the number of its features"),
        (Flat(told=5), r"the features of 2 images are \(2, 4\): expected \(2, 5\), by its"),
        (NoStatistics(), r"as model\(images, statistics\): TypeError: .*takes 2 positional"),
        (Flat(nn.Linear(3, 4)), r"cannot take images \(2, 1, 8, 8\) .*RuntimeError"),
        (Failing(), "cannot take images .*: AssertionError: not so"),
        ("text", "model 'mine' is a str: expected an nn.Module"),
    ],
    ids=["no dim", "another dim", "no statistics", "shapes", "an error", "no module"],
)
def test_what_is_no_backbone(made, module, message):
    with pytest.raises(ValueError, match=message) as refused:
        made(module)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(0.5)], ids=["norm", "dropout"])
def test_layers_that_are_no_function_of_image_and_statistics(made, layer):
    backbone = Flat(layer)
    words = r"layers\.2 is a (BatchNorm1d|Dropout) in training mode"
    with pytest.raises(ValueError, match=words):
        Encoder(backbone=backbone, normalization=Normalization.GHOST)
    with pytest.raises(ValueError, match=words):
        made(backbone)
    encoder = Encoder(backbone=backbone.eval(), normalization=Normalization.GHOST)
    images = torch.rand(1, 3, 1, 8, 8)
    (alone,) = encoder(images[:, :1], training=False)
    (beside,) = encoder(images, training=False)
    torch.testing.assert_close(alone, beside[:, :1])


def test_dropout_of_nothing():
    Encoder(backbone=Flat(nn.Dropout(0.0)), normalization=Normalization.GHOST)
