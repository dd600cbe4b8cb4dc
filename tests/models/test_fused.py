"""All sets at once give what the network gives set by set: float64, with gradients and averages."""

import pytest
import torch
from torch import nn

from bilevel_models import EACH_SET, Encoder, Normalization, Statistics, create_model
from bilevel_models.backbones.fused.conv_block import Plan, block, channels_last

NETWORKS = [("omniglot-net", 1, 28), ("c4l", 3, 16), ("c4l", 1, 47), ("omniglot-net", 3, 21)]
SIZES = (2, 4, 3)


def network(name="c4l", channels=1, size=16):
    torch.manual_seed(0)
    model = create_model(name, channels=channels, image_size=size, filters=5).double()
    for norm in model.norms:
        nn.init.normal_(norm.bias, std=0.3)
    return model


def pictures(n, channels, size):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, channels, size, size, dtype=torch.float64, generator=generator)
    x[:, :, : size // 2, : size // 2] = 0.0  # as on paper: many windows have no single maximum
    return x


def apart(found, expected):
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize(("name", "channels", "size"), NETWORKS)
def test_equals_the_network_set_by_set(name, channels, size, track):
    x, results = pictures(sum(SIZES), channels, size), []
    for at_once in (False, True):
        model = network(name, channels, size)
        if at_once:
            h = model.forward_sets(x, SIZES, track=track)
        else:
            h = torch.cat([model(each, Statistics(track=track)) for each in x.split(SIZES)])
        weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(2)).double()
        (torch.tanh(h) * weights).sum().backward()
        named = {"features": h.detach(), **{k: p.grad for k, p in model.named_parameters()}}
        results.append(named | dict(model.named_buffers()))
    for key, expected in results[0].items():
        error = torch.linalg.vector_norm(results[1][key] - expected)
        size = torch.linalg.vector_norm(expected)
        assert error <= 1e-10 * size, key
        assert (size > 0) == (track or "running_mean" not in key), key


@pytest.mark.parametrize("pool", [False, True])
def test_gradcheck(pool):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    plan = Plan(sizes=(2, 1), first=False, pool=pool, eps=1e-3, momentum=0.1, running=None)
    inputs = normal(3, 2, 5, 6), normal(3, 2, 3, 3), normal(3)
    assert torch.autograd.gradcheck(lambda x, w, b: block(x, w, b, plan), inputs)


@pytest.mark.parametrize("mode", list(Normalization))
@pytest.mark.parametrize("training", [False, True])
def test_the_encoder_gives_the_same_with_a_backbone_that_takes_no_sets(mode, training):
    class Plain(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images, statistics=EACH_SET):
            return self.model(images, statistics)

    s, q = pictures(6, 1, 16).view(2, 3, 1, 16, 16), pictures(10, 1, 16).view(2, 5, 1, 16, 16)
    results = []
    for wrap in (Plain, lambda model: model):
        model = network()
        encoder = Encoder(backbone=wrap(model), normalization=mode, unit_length=True)
        h_s, h_q = encoder(s, q, training=training)
        results.append([h_s, h_q, *model.buffers()])
        if training:
            torch.autograd.backward((h_s, h_q), (h_s.detach().cos(), h_q.detach().sin()))
            results[-1] += [p.grad for p in model.parameters()]
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["c4l", "omniglot-net"])
def test_autocast_computes_in_bfloat16_as_well_as_the_network_does(name):
    model, x, grads = network(name).float(), pictures(sum(SIZES), 1, 16).float(), []
    for at_once, narrow in ((True, False), (False, True), (True, True)):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            if at_once:
                h = model.forward_sets(x, SIZES, track=True)
            else:
                h = torch.cat([model(each, EACH_SET) for each in x.split(SIZES)])
        assert h.dtype == (torch.bfloat16 if narrow else torch.float32)
        h.float().square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for wide, stock, found in zip(*grads, strict=True):
        assert found.dtype == torch.float32
        assert 0 < apart(found, wide) < 1.1 * apart(stock, wide) + 0.01
    assert model.norms[0].running_mean.dtype == torch.float32


@pytest.mark.parametrize("name", ["c4l", "omniglot-net"])
def test_the_same_bits_every_time(name):
    x, found = pictures(sum(SIZES), 1, 16).float(), []
    for _ in range(2):
        model = network(name).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model.forward_sets(x, SIZES, track=True).float().square().sum().backward()
        found.append([*(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.equal(*each) for each in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["c4l", "omniglot-net"])
def test_gradients_lie_as_weights_do(name, dtype):
    """Else the derivative of an inner loop that ends in these weights takes a slower way."""
    model = network(name, channels=3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        total = model.forward_sets(pictures(9, 3, 16).float(), [9], track=False).float().sum()
    weights = list(model.parameters())
    for w, gradient in zip(weights, torch.autograd.grad(total, weights), strict=True):
        assert gradient.stride() == w.stride()


@pytest.mark.parametrize("name", ["c4l", "omniglot-net"])
def test_second_derivatives_are_refused(name):
    model = network(name)
    h = model.forward_sets(pictures(3, 1, 16), (3,), track=False)
    with pytest.raises(NotImplementedError, match="can be differentiated only once"):
        torch.autograd.grad(h.square().sum(), list(model.parameters()), create_graph=True)


def test_one_channel_gets_the_strides_of_channels_last():
    x = torch.rand(2, 1, 3, 4)
    found = channels_last(x)
    assert found.stride() == (12, 1, 4, 1)
    assert torch.equal(found, x)
    rotated = torch.rand(2, 3, 4, 5).transpose(2, 3)
    assert torch.equal(channels_last(rotated), rotated)
