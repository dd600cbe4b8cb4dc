"""timm's models as backbones: the same numbers, and statistics that are told."""

import importlib.util

import pytest
import torch
from torch import nn

from bilevel_models import EACH_SET, RUNNING, create_model
from bilevel_models.backbones.timm import timm_backbone
from bilevel_models.backbones.torchvision_library import torchvision_module

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra")


@pytest.fixture(scope="module")
def timm():
    torchvision_module("torchvision")
    return importlib.import_module("timm")


def stock(timm, name, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, mean=0.5, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.double()


def standardised(x, model):
    config = model.pretrained_cfg
    mean, std = (
        torch.tensor(config[key], dtype=x.dtype).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    return (x - mean) / std


# A plain BatchNorm2d, one with an activation in it, and a transformer without any.
NAMES = {"resnet18": 40, "efficientnet_lite0": 40, "vit_tiny_patch16_224": 32}


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "efficientnet_lite0",
        pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("statistics", "training"), [(RUNNING, False), (EACH_SET, True)])
def test_features_are_what_the_model_pools(timm, name, statistics, training):
    options = {"img_size": 32} if name.startswith("vit") else {}
    theirs = stock(timm, name, **options).train(training)
    ours = create_model(f"timm:{name}", image_size=NAMES[name]).double()
    ours.load_state_dict(ours.from_library(theirs.state_dict()))
    x = torch.rand(3, 3, NAMES[name], NAMES[name], dtype=torch.float64)
    with torch.no_grad():
        given = standardised(x, theirs)
        expected = theirs.forward_head(theirs.forward_features(given), pre_logits=True)
        torch.testing.assert_close(ours(x, statistics), expected, rtol=1e-6, atol=1e-6)
    assert ours.dim == expected.shape[1] == theirs.num_features


def test_grey_images_are_grey(timm):
    model = timm_backbone("resnet18", channels=1, image_size=32)
    x = torch.rand(4, 1, 32, 32)
    torch.testing.assert_close(model(x, RUNNING), model(x.expand(-1, 3, -1, -1), RUNNING))


def test_weights_of_another_model_are_refused(timm):
    model = timm_backbone("resnet18", image_size=32)
    with pytest.raises(ValueError, match=r"have no 'conv1\.weight'"):
        model.from_library({"x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "timm has no model 'resnet19': choose one such as .*resnet18"),
        ("hf-hub:timm/resnet18", "timm has no model"),
        ("resnet18.a1_in1k", "timm has no model"),
        pytest.param("levit_128", "normalises by .*BatchNorm1d", marks=pytest.mark.slow),
    ],
)
def test_what_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        create_model(f"timm:{name}", image_size=224)
