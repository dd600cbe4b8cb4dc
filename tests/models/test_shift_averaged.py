"""Features averaged over shifts of an image: against a slow mean, and inductive."""

import pytest
import torch

from bilevel_models import Encoder, Normalization, create_model
from bilevel_models.backbones.shift_averaged import ShiftAveraged
from bilevel_models.normalization import RUNNING


@pytest.fixture
def network():
    torch.manual_seed(0)
    return create_model("omniglot-net", filters=4, image_size=16).double()


def rolled(image, down, right):
    """Return an image (channels, height, width) moved pixel by pixel, its edge repeated."""
    height, width = image.shape[1:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return image[:, rows][:, :, columns]


@pytest.mark.parametrize("pixels", [1, 3])
def test_is_the_mean_over_nine_places(network, pixels):
    images = torch.rand(3, 1, 16, 16, dtype=torch.float64)
    found = ShiftAveraged(network, pixels)(images, RUNNING)
    steps = (-pixels, 0, pixels)
    each = [
        network(torch.stack([rolled(image, i, j) for image in images]), RUNNING)
        for i in steps
        for j in steps
    ]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0))


@pytest.mark.parametrize("mode", list(Normalization))
def test_an_encoder_takes_it(network, mode):
    encoder = Encoder(
        backbone=ShiftAveraged(network, 1), normalization=mode, unit_length=True, bfloat16=False
    )
    support, query = torch.rand(2, 2, 5, 1, 16, 16, dtype=torch.float64)
    _, among = encoder(support, query, training=False)
    torch.testing.assert_close(among.norm(dim=-1), torch.ones(2, 5, dtype=torch.float64))
    _, fewer = encoder(support, query[:, :2], training=False)
    assert torch.allclose(among[:, :2], fewer, atol=1e-12) == mode.inductive


def test_no_shift_is_refused(network):
    with pytest.raises(ValueError, match="pixels=0: expected 1 or more"):
        ShiftAveraged(network, 0)
