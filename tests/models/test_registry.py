"""Every registered backbone keeps the same promises."""

import pytest
import torch

from bilevel_models import create_model, list_models, register_model

PARAMETERS = {"omniglot-net": 111_424, "c4l": 28_640}
DIMENSIONS = {"omniglot-net": 256, "c4l": 800}
IMAGES = {"omniglot-net": (1, 28), "c4l": (3, 84)}


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
def test_weights_come_from_the_global_seed_and_are_glorot_uniform(name: str):
    torch.manual_seed(3)
    first = create_model(name)
    torch.manual_seed(3)
    second = create_model(name)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for convolution in first.convolutions:
        out, into, *kernel = convolution.weight.shape
        bound = (6 / ((out + into) * kernel[0] * kernel[1])) ** 0.5
        assert 0.9 * bound < convolution.weight.abs().max() <= bound


def test_every_parameter_gets_a_gradient():
    for name in list_models():
        model = create_model(name)
        channels, size = IMAGES[name]
        model(torch.rand(4, channels, size, size)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no model 'c5l': choose one of c4l, omniglot-net"):
        create_model("c5l")
    with pytest.raises(ValueError, match="model 'c4l' has no option width: it has channels"):
        create_model("c4l", width=3)
    with pytest.raises(ValueError, match="image_size=15 is too small"):
        create_model("c4l", image_size=15)
    with pytest.raises(ValueError, match="'c4l' is registered already"):
        register_model("c4l", create_model)
