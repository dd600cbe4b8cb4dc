"""Every registered backbone keeps the same promises."""

import pytest
import torch
from torch import nn

from bilevel_models import create_model, list_models, register_model

PARAMETERS = {"omniglot-net": 111_424, "c4l": 28_640, "rn": 3_805_696, "resnet12": 12_424_320}
DIMENSIONS = {"omniglot-net": 256, "c4l": 800, "rn": 512, "resnet12": 640}
IMAGES = {"omniglot-net": (1, 28), "c4l": (3, 84), "rn": (3, 84), "resnet12": (3, 84)}
GLOROT = ("omniglot-net", "c4l", "rn")


def test_the_list_is_complete():
    assert list_models() == tuple(sorted(PARAMETERS))


@pytest.mark.parametrize("name", list_models())
def test_the_sizes_are_the_papers(name: str):
    model = create_model(name)
    channels, size = IMAGES[name]
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.dim == DIMENSIONS[name]
    assert model(torch.rand(2, channels, size, size)).shape == (2, DIMENSIONS[name])


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 33), (4, 47)])
def test_dim_is_true_for_any_image_size(name: str, channels: int, size: int):
    model = create_model(name, channels=channels, image_size=size, filters=8)
    assert model(torch.rand(3, channels, size, size)).shape == (3, model.dim)


@pytest.mark.parametrize("name", list_models())
def test_weights_come_from_the_global_seed(name: str):
    torch.manual_seed(3)
    first = create_model(name)
    torch.manual_seed(3)
    second = create_model(name)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", list_models())
def test_weights_are_glorot_uniform_or_he_normal(name: str):
    for convolution in filter(lambda m: isinstance(m, nn.Conv2d), create_model(name).modules()):
        out, into, *kernel = convolution.weight.shape
        area = kernel[0] * kernel[1]
        if name in GLOROT:
            bound = (6 / ((out + into) * area)) ** 0.5
            assert 0.9 * bound < convolution.weight.abs().max() <= bound
        else:
            expected = (2 / (out * area)) ** 0.5
            assert float(convolution.weight.detach().std()) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_gets_a_gradient(name: str):
    model = create_model(name)
    channels, size = IMAGES[name]
    model(torch.rand(4, channels, size, size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"no model 'c5l': choose one of c4l, .* torchvision:NAME"):
        create_model("c5l")
    with pytest.raises(ValueError, match="model 'c4l' has no option width: it has channels"):
        create_model("c4l", width=3)
    with pytest.raises(ValueError, match="image_size=15 is too small"):
        create_model("c4l", image_size=15)
    with pytest.raises(ValueError, match="image_size=0 is too small: use at least 1"):
        create_model("rn", image_size=0)
    with pytest.raises(ValueError, match="filters=0 is too small"):
        create_model("c4l", filters=0)
    with pytest.raises(ValueError, match="kernel_size=2: use 3, or 1"):
        create_model("rn", kernel_size=2)
    with pytest.raises(ValueError, match="kernel_size='3' must be a whole number"):
        create_model("rn", kernel_size="3")
    with pytest.raises(ValueError, match="wide=1 must be true or false"):
        create_model("resnet12", wide=1)
    with pytest.raises(ValueError, match="'c4l' is registered already"):
        register_model("c4l", create_model)
