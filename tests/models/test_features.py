"""Encode once: the same numbers as the backbone by itself, image by image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from bilevel_models import EACH_SET, RUNNING, Encoder, Normalization, as_images, create_model


def setup(mode=Normalization.SUPPORT, **options):
    torch.manual_seed(0)
    backbone = create_model("c4l", channels=1, image_size=16, filters=4).double()
    support = torch.rand(3, 4, 1, 16, 16, dtype=torch.float64)
    query = torch.rand(3, 6, 1, 16, 16, dtype=torch.float64)
    return Encoder(backbone=backbone, normalization=mode, **options), support, query


class Plain(torch.nn.Module):
    """A backbone without its `forward_sets`."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, statistics):
        return self.network(images, statistics)


def test_features_are_the_backbones_in_the_episodes_order():
    encoder, support, query = setup(Normalization.EPISODE)
    h_s, h_q = encoder(support, query, training=False)
    for b in range(3):
        assert torch.allclose(h_s[b], encoder.backbone(support[b], EACH_SET))
        assert torch.allclose(h_q[b], encoder.backbone(query[b], EACH_SET))


@pytest.mark.parametrize("takes_sets", [True, False], ids=["at once", "episode by episode"])
@pytest.mark.parametrize("mode", list(Normalization))
def test_one_set_is_encoded_as_a_support_set_alone(mode, takes_sets):
    """Outside training: `episode` and `support` take each set's statistics, others the averages."""
    encoder, images, _ = setup(mode)
    if not takes_sets:
        encoder = replace(encoder, backbone=Plain(encoder.backbone))
    (found,) = encoder(images, training=False)
    own = mode in (Normalization.EPISODE, Normalization.SUPPORT)
    for b in range(3):
        expected = encoder.backbone(images[b], EACH_SET if own else RUNNING)
        assert torch.allclose(found[b], expected)


@pytest.mark.parametrize("mode", list(Normalization))
def test_the_gradient_of_one_set_is_the_chain_rule(mode):
    encoder, images, _ = setup(mode, unit_length=True)
    (found,) = encoder(images, training=True)
    direction = torch.randn_like(found)
    found.backward(direction)
    h = (images if mode is not Normalization.BATCH else images.flatten(0, 1)[None]).unbind()
    h = torch.cat([functional.normalize(encoder.backbone(part, EACH_SET), dim=-1) for part in h])
    assert torch.allclose(found.flatten(0, 1), h, rtol=1e-10, atol=1e-13)
    expected = torch.autograd.grad(h, list(encoder.backbone.parameters()), direction.flatten(0, 1))
    for parameter, reference in zip(encoder.backbone.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, reference, rtol=1e-10, atol=1e-13)


def test_unit_length():
    encoder, support, query = setup(unit_length=True)
    plain, *_ = setup(unit_length=False)
    h_s, h_q = encoder(support, query, training=False)
    _, raw = plain(support, query, training=False)
    assert torch.allclose(h_q, functional.normalize(raw, dim=-1))
    assert torch.allclose(h_s.norm(dim=-1), torch.ones(3, 4, dtype=torch.float64))


def test_bfloat16_is_close_and_features_stay_float32():
    encoder, support, query = setup(Normalization.GHOST)
    _, wide = encoder(support, query, training=True)
    backbone = encoder.backbone.float()
    narrow = Encoder(backbone=backbone, normalization=Normalization.GHOST, bfloat16=True)
    _, found = narrow(support.float(), query.float(), training=True)
    assert found.dtype == torch.float32
    difference = torch.linalg.vector_norm(found - wide)
    assert 0 < difference < 0.05 * torch.linalg.vector_norm(wide)


def test_as_images():
    pixels = np.arange(2 * 3 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 3, 4, 5, 3)
    images = as_images(pixels)
    assert images.shape == (2, 3, 3, 4, 5)
    assert images.dtype == torch.float32
    assert images[1, 2, 1, 3, 4].item() == pytest.approx(pixels[1, 2, 3, 4, 1] / 255)
    assert images[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("takes_sets", [True, False], ids=["at once", "episode by episode"])
@pytest.mark.parametrize("mode", list(Normalization))
def test_sets_of_different_episodes_are_refused(mode, takes_sets, training):
    encoder, support, query = setup(mode)
    if not takes_sets:
        encoder = replace(encoder, backbone=Plain(encoder.backbone))
    message = r"as many episodes in each set, .* \(3, 4, 1, 16, 16\) and \(6, 6, 1, 16, 16\)"
    with pytest.raises(ValueError, match=message):
        encoder(support, torch.cat((query, query)), training=training)


def test_sets_that_are_not_episodes_of_images_are_refused():
    encoder, support, query = setup()
    message = r"^expected images \(batch, n, channels, height, width\)"
    for arguments in ((support[0], query[0]), (support, query[0])):
        with pytest.raises(ValueError, match=message):
            encoder(*arguments, training=False)
    with pytest.raises(ValueError, match=message + r".* found shapes \(4, 1, 16, 16\)"):
        encoder(support[0], training=False)
