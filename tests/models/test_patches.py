"""Products on patches against the convolution that they stand for, in float64."""

import pytest
import torch

from bilevel_models.backbones.fused import conv_block as windows_module
from bilevel_models.backbones.fused.conv_block import Plan, block, weight_gradient
from bilevel_models.backbones.fused.first_layer import Moments, Patches, normalising_maps, rectified

SIZES = (2, 1, 3)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def sets_of(images):
    return [Patches.of(each, images.dtype) for each in images.split(SIZES)]


def plan(running=None):
    return Plan(sizes=SIZES, first=True, pool=False, eps=1e-3, momentum=0.1, running=running)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 6, 6), (3, 7, 4), (2, 1, 5)])
def test_moments_of_patches_are_those_of_the_convolutions_output(channels, height, width):
    images, weight = 2 + normal(6, channels, height, width), normal(4, channels, 3, 3, seed=1)
    moments = Moments.of(sets_of(images), torch.float64)
    mean, var = moments.of_output(weight.flatten(1))
    y = torch.conv2d(images, weight, stride=2, padding=1).split(SIZES)
    assert torch.allclose(mean, torch.stack([each.mean((0, 2, 3)) for each in y]), rtol=1e-12)
    expected = torch.stack([each.var((0, 2, 3), correction=0) for each in y])
    assert torch.allclose(var, expected, rtol=1e-11, atol=1e-12)


def test_gradcheck_of_the_maps_and_of_what_they_give():
    sets = sets_of(normal(6, 2, 4, 5))
    moments = Moments.of(sets, torch.float64)

    def run(weight, offset):
        return rectified(normalising_maps(weight, offset, moments, 1e-3), sets)

    inputs = normal(3, 18, seed=1).requires_grad_(), normal(3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(run, inputs)


def test_images_far_from_zero_keep_their_digits_in_bfloat16():
    images = 100 + normal(6, 1, 8, 8)  # as such they would be rounded to halves
    patches = Patches.of(images, torch.bfloat16)
    centres = patches.rows[4].double() + patches.level
    error = centres - images[..., ::2, ::2].flatten()
    assert 0 < error.abs().max() < 0.02


def test_images_get_no_gradient():
    images, weight = normal(6, 1, 4, 4).requires_grad_(), normal(2, 1, 3, 3).requires_grad_()
    block(images, weight, torch.zeros(2).double(), plan()).sum().backward()
    assert images.grad is None
    assert weight.grad.abs().max() > 1e-3


def test_one_number_a_filter_leaves_finite_averages():
    running = torch.zeros(2).double(), torch.ones(2).double()
    one = Plan(sizes=(1,), first=True, pool=False, eps=1e-3, momentum=0.1, running=running)
    block(normal(1, 1, 2, 2), normal(2, 1, 3, 3), torch.zeros(2).double(), one)
    assert torch.isfinite(running[0]).all()
    assert torch.allclose(running[1], torch.full((2,), 0.9).double())


@pytest.mark.parametrize("rows", [1, 25, 8192])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (6, 8), (1, 2)])
def test_weight_gradient_is_the_convolutions(monkeypatch, height, width, rows):
    monkeypatch.setattr(windows_module, "_ROWS", rows)  # several products, the last one smaller
    x, weight = normal(5, 3, height, width), normal(4, 3, 3, 3, seed=1).requires_grad_()
    y = torch.conv2d(x, weight, stride=2, padding=1)
    grad = normal(*y.shape, seed=2)
    (expected,) = torch.autograd.grad(y, weight, grad)
    found = weight_gradient(grad, x)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_weight_gradient_of_bfloat16_is_summed_in_float32():
    x, grad = normal(40, 3, 7, 7), normal(40, 4, 4, 4, seed=2)
    x, grad = x.bfloat16(), grad.bfloat16()
    weight = torch.zeros(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    y = torch.conv2d(x.double(), weight, stride=2, padding=1)
    (expected,) = torch.autograd.grad(y, weight, grad.double())
    found = weight_gradient(grad, x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() < 0.005 * expected.norm()
