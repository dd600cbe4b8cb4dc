"""RN and ResNet-12 against their formulas, written out slowly."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from bilevel_models import EACH_SET, OffsetNorm2d, Statistics, create_model
from bilevel_models.backbones import recomputed as residual


def same_pool(x):
    """2×2 max-pool whose last window may be cut off."""
    height, width = x.shape[-2:]
    padded = functional.pad(x, (0, width % 2, 0, height % 2), value=-torch.inf)
    return functional.max_pool2d(padded, 2)


def normalised(x, norm):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    gamma = 1 if norm.weight is None else norm.weight.view(1, -1, 1, 1)
    return gamma * (x - mean) / torch.sqrt(var + norm.eps) + norm.bias.view(1, -1, 1, 1)


def unit(x, convolution, norm):
    w = convolution.weight
    return normalised(functional.conv2d(x, w, padding=w.shape[-1] // 2), norm)


def leaky(x):
    return torch.where(x > 0, x, 0.1 * x)


def rn_by_formula(model, x):
    for block in model.blocks:
        a = x
        for each in zip(block.convolutions, block.norms, strict=True):
            a = leaky(unit(a, *each))
        x = same_pool(a + functional.conv2d(x, block.skip.weight, block.skip.bias))
    x = torch.relu(functional.conv2d(x, model.before_mean.weight, model.before_mean.bias))
    last = model.after_mean
    return torch.relu(x.mean((2, 3)) @ last.weight.flatten(1).T + last.bias)


def resnet12_by_formula(model, x):
    for block in model.blocks:
        first, second, third = zip(block.convolutions, block.norms, strict=True)
        a = unit(leaky(unit(leaky(unit(x, *first)), *second)), *third)
        x = functional.max_pool2d(leaky(a + unit(x, block.skip, block.skip_norm)), 2)
    return x.mean((2, 3))


def shaken(name, **options):
    """A model whose offsets, scales and biases are not where they started."""
    torch.manual_seed(0)
    model = create_model(name, **options).double()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("shape", [(21, 21), (12, 30), (1, 1)])
def test_rn_is_its_formula_at_any_size(kernel_size, shape):
    model = shaken("rn", filters=3, kernel_size=kernel_size)
    x = torch.rand(4, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(model(x), rn_by_formula(model, x), rtol=1e-10, atol=1e-12)
    assert model(x).shape == (4, 24)


@pytest.mark.parametrize("wide", [False, True])
def test_resnet12_is_its_formula(wide):
    model = shaken("resnet12", filters=4, wide=wide)
    x = torch.rand(3, 3, 33, 20, dtype=torch.float64)
    torch.testing.assert_close(model(x), resnet12_by_formula(model, x), rtol=1e-10, atol=1e-12)
    assert model(x).shape == (3, model.dim) == (3, 40 if wide else 32)


def test_the_sizes_of_the_variants():
    small, narrow = create_model("rn", kernel_size=1), create_model("resnet12", wide=False)
    assert sum(p.numel() for p in small.parameters()) == 1_870_848
    assert sum(p.numel() for p in narrow.parameters()) == 7_996_800
    assert (small.dim, narrow.dim) == (512, 512)


def test_rn_halves_84_to_6():
    sides = []
    model = create_model("rn", filters=2)
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, result: sides.append(result.shape[2:]))
    model(torch.rand(1, 3, 84, 84))
    assert sides == [(42, 42), (21, 21), (11, 11), (6, 6)]


@pytest.mark.parametrize("statistics", [EACH_SET, Statistics(first=2)])
@pytest.mark.parametrize("name", ["rn", "resnet12"])
def test_gradcheck(name, statistics):
    model = shaken(name, channels=1, filters=2)
    x = torch.rand(3, 1, 17, 17, dtype=torch.float64, requires_grad=True)
    names, values = zip(*model.named_parameters(), strict=True)

    def run(x, *values):
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, weights, (x, statistics))

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


def test_images_too_small_are_refused():
    with pytest.raises(ValueError, match="image_size=15 is too small for 4 halvings"):
        create_model("resnet12", image_size=15)


def test_what_is_computed_again_changes_nothing():
    """Weights' gradients as in one plain pass, and averages that follow once."""
    model = shaken("rn", filters=2)
    x = torch.rand(3, 3, 12, 12, dtype=torch.float64)
    weights = dict(model.named_parameters())
    expected = torch.func.grad(
        lambda w: torch.func.functional_call(model, w, (x, EACH_SET)).square().sum()
    )(weights)
    before = [buffer.clone() for buffer in model.buffers()]
    h = model(x, Statistics(track=True))
    after = [buffer.clone() for buffer in model.buffers()]
    h.square().sum().backward()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-10, atol=1e-12)
    for old, new, now in zip(before, after, model.buffers(), strict=True):
        assert not torch.equal(old, new)
        assert torch.equal(new, now)


@pytest.mark.parametrize("name", ["rn", "resnet12"])
@pytest.mark.parametrize("plain", [False, True])
def test_nothing_normalised_outlives_the_pass(name, plain, monkeypatch):
    if plain:  # as autograd alone does it
        monkeypatch.setattr(residual, "checkpoint", lambda run, *inputs, **options: run(*inputs))
    model, results = create_model(name, filters=2), []
    for module in model.modules():
        if isinstance(module, OffsetNorm2d):
            module.register_forward_hook(lambda m, args, y: results.append(weakref.ref(y)))
    h = model(torch.rand(2, 3, 17, 17))
    assert h.requires_grad
    assert len(results) >= 12
    assert any(result() is not None for result in results) == plain
