"""Encode once, pull back once: the same numbers as autograd through everything."""

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


def outer(h_s, h_q):
    """Any scalar of both feature tensors."""
    return torch.tanh(h_s @ h_s.mT).sum() + (h_q @ h_s.mT).square().mean()


@pytest.mark.parametrize("mode", list(Normalization))
@pytest.mark.parametrize("unit_length", [False, True])
def test_pull_back_is_the_chain_rule(mode: Normalization, unit_length: bool):
    encoder, support, query = setup(mode, unit_length=unit_length)
    features = encoder.encode(support, query, training=True)
    h_s, h_q = features.support.requires_grad_(), features.query.requires_grad_()
    grads = torch.autograd.grad(outer(h_s, h_q), (h_s, h_q))
    features.pull_back(*grads)
    found = [p.grad.clone() for p in encoder.backbone.parameters()]

    encoder, support, query = setup(mode, unit_length=unit_length)
    h_s, h_q = encoder._forward(support, query, training=True)
    expected = torch.autograd.grad(outer(h_s, h_q), list(encoder.backbone.parameters()))
    for actual, reference in zip(found, expected, strict=True):
        assert torch.allclose(actual, reference, rtol=1e-10, atol=1e-13)


def test_features_are_the_backbones_in_the_episodes_order():
    encoder, support, query = setup(Normalization.EPISODE)
    features = encoder.encode(support, query, training=False)
    for b in range(3):
        assert torch.allclose(features.support[b], encoder.backbone(support[b], EACH_SET))
        assert torch.allclose(features.query[b], encoder.backbone(query[b], EACH_SET))


@pytest.mark.parametrize("takes_sets", [True, False], ids=["at once", "episode by episode"])
@pytest.mark.parametrize("mode", list(Normalization))
def test_one_set_is_encoded_as_a_support_set_alone(mode, takes_sets):
    """Outside training: `episode` and `support` take each set's statistics, others the averages."""
    encoder, images, _ = setup(mode)
    if not takes_sets:
        encoder = replace(encoder, backbone=Plain(encoder.backbone))
    found, pull_back = encoder.encode_set(images, training=False)
    own = mode in (Normalization.EPISODE, Normalization.SUPPORT)
    for b in range(3):
        expected = encoder.backbone(images[b], EACH_SET if own else RUNNING)
        assert torch.allclose(found[b], expected)
    assert not found.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        pull_back(found)


@pytest.mark.parametrize("mode", list(Normalization))
def test_the_way_back_of_one_set_is_the_chain_rule(mode):
    encoder, images, _ = setup(mode, unit_length=True)
    found, pull_back = encoder.encode_set(images, training=True)
    direction = torch.randn_like(found)
    pull_back(direction)
    h = (images if mode is not Normalization.BATCH else images.flatten(0, 1)[None]).unbind()
    h = torch.cat([functional.normalize(encoder.backbone(part, EACH_SET), dim=-1) for part in h])
    assert torch.allclose(found.flatten(0, 1), h, rtol=1e-10, atol=1e-13)
    expected = torch.autograd.grad(h, list(encoder.backbone.parameters()), direction.flatten(0, 1))
    for parameter, reference in zip(encoder.backbone.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, reference, rtol=1e-10, atol=1e-13)


def test_unit_length():
    encoder, support, query = setup(unit_length=True)
    plain, *_ = setup(unit_length=False)
    features = encoder.encode(support, query, training=False)
    raw = plain.encode(support, query, training=False)
    assert torch.allclose(features.query, functional.normalize(raw.query, dim=-1))
    assert torch.allclose(features.support.norm(dim=-1), torch.ones(3, 4, dtype=torch.float64))


def test_no_graph_is_kept_outside_training():
    encoder, support, query = setup()
    features = encoder.encode(support, query, training=False)
    assert not features.support.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        features.pull_back(features.support, features.query)


def test_bfloat16_is_close_and_features_stay_float32():
    encoder, support, query = setup(Normalization.GHOST)
    wide = encoder.encode(support, query, training=True)
    backbone = encoder.backbone.float()
    narrow = Encoder(backbone=backbone, normalization=Normalization.GHOST, bfloat16=True)
    features = narrow.encode(support.float(), query.float(), training=True)
    assert features.query.dtype == torch.float32
    difference = torch.linalg.vector_norm(features.query - wide.query)
    assert 0 < difference < 0.05 * torch.linalg.vector_norm(wide.query)


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
        encoder.encode(support, torch.cat((query, query)), training=training)


def test_sets_that_are_not_episodes_of_images_are_refused():
    encoder, support, query = setup()
    message = r"^expected images \(batch, n, channels, height, width\)"
    for arguments in ((support[0], query[0]), (support, query[0])):
        with pytest.raises(ValueError, match=message):
            encoder.encode(*arguments, training=False)
    with pytest.raises(ValueError, match=message + r".* found shapes \(4, 1, 16, 16\)"):
        encoder.encode_set(support[0], training=False)


@pytest.mark.parametrize("takes_sets", [True, False], ids=["at once", "episode by episode"])
@pytest.mark.parametrize("mode", list(Normalization))
def test_a_frozen_backbone_has_nothing_to_pull_back_to(mode, takes_sets):
    encoder, support, query = setup(mode)
    encoder.backbone.requires_grad_(False)
    if not takes_sets:
        encoder = replace(encoder, backbone=Plain(encoder.backbone))
    features = encoder.encode(support, query, training=True)
    features.pull_back(features.support, features.query)
    found, pull_back = encoder.encode_set(support, training=True)
    pull_back(found)
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())


def test_images_may_ask_for_a_gradient_where_the_backbone_does_not():
    encoder, support, query = setup(Normalization.EPISODE)
    encoder.backbone.requires_grad_(False)
    encoder = replace(encoder, backbone=Plain(encoder.backbone))
    features = encoder.encode(support.requires_grad_(), query, training=True)
    features.pull_back(features.support, features.query)
    h = encoder._forward(support, query, training=True)[0]
    (expected,) = torch.autograd.grad(h, support, features.support)
    assert torch.allclose(support.grad, expected, rtol=1e-10, atol=1e-13)
