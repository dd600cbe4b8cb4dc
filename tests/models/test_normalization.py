"""Whose statistics: each mode against the formula, in float64."""

import pytest
import torch

from bilevel_models import (
    EACH_SET,
    RUNNING,
    Encoder,
    Normalization,
    OffsetNorm2d,
    Statistics,
    create_model,
)

MODES = list(Normalization)


def norm_layer() -> OffsetNorm2d:
    layer = OffsetNorm2d(3).double()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.running_mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
        layer.running_var.copy_(torch.tensor([1.0, 2.0, 0.5]))
    return layer


def images(n: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(n, 3, 4, 5, dtype=torch.float64, generator=generator)


def by_formula(x, mean, var, bias):
    mean, var, bias = (v.view(1, -1, 1, 1) for v in (mean, var, bias))
    return (x - mean) / torch.sqrt(var + 1e-3) + bias


@pytest.mark.parametrize("first", [None, 1, 2, 6])
def test_statistics_of_the_first_images(first):
    layer, x = norm_layer(), images()
    of = x[:first]
    expected = by_formula(x, of.mean((0, 2, 3)), of.var((0, 2, 3), correction=0), layer.bias)
    assert torch.allclose(layer(x, Statistics(first=first)), expected, rtol=1e-12, atol=1e-12)


def test_running_statistics_are_used_and_not_changed():
    layer, x = norm_layer(), images()
    before = layer.running_mean.clone(), layer.running_var.clone()
    expected = by_formula(x, *before, layer.bias)
    assert torch.allclose(layer(x, RUNNING), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])


def test_running_statistics_follow_only_when_asked():
    layer, x = norm_layer(), images()
    before = layer.running_mean.clone(), layer.running_var.clone()
    layer(x, EACH_SET)
    assert torch.equal(layer.running_mean, before[0])
    layer(x, Statistics(track=True))
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    assert torch.allclose(layer.running_mean, 0.9 * before[0] + 0.1 * mean)
    assert torch.allclose(layer.running_var, 0.9 * before[1] + 0.1 * var)


@pytest.mark.parametrize("statistics", [EACH_SET, RUNNING, Statistics(first=2)])
def test_gradcheck(statistics: Statistics):
    layer = norm_layer()
    x = images(4).requires_grad_()

    def run(x, bias):
        return torch.func.functional_call(layer, {"bias": bias}, (x, statistics))

    bias = layer.bias.detach().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, bias))


def encoder(mode: Normalization, **options) -> Encoder:
    torch.manual_seed(0)
    backbone = create_model("omniglot-net", image_size=32, filters=4).double()
    return Encoder(backbone=backbone, normalization=mode, **options)


def episodes(batch: int = 3, n: int = 4, m: int = 6, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 32, 32)
    return (
        torch.rand(batch, n, *shape, dtype=torch.float64, generator=generator),
        torch.rand(batch, m, *shape, dtype=torch.float64, generator=generator),
    )


@pytest.mark.parametrize("mode", MODES)
def test_inductive_means_that_a_query_alone_has_the_same_features(mode: Normalization):
    support, query = episodes()
    coder = encoder(mode)
    together = coder.encode(support, query, training=False).query
    alone = coder.encode(support, query[:, :1], training=False).query
    same = torch.allclose(together[:, :1], alone, rtol=1e-10, atol=1e-12)
    assert same == mode.inductive


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_an_episode_depends_on_others_only_in_batch_mode_while_training(mode, training):
    support, query = episodes()
    coder = encoder(mode)
    all_three = coder.encode(support, query, training=training)
    coder = encoder(mode)
    first_only = coder.encode(support[:1], query[:1], training=training)
    independent = torch.allclose(all_three.query[:1], first_only.query, rtol=1e-10, atol=1e-12)
    assert independent == (not (training and mode is Normalization.BATCH))


@pytest.mark.parametrize("mode", MODES)
def test_running_averages_move_in_training_alone_and_only_where_test_uses_them(mode):
    support, query = episodes()
    coder = encoder(mode)
    norm = coder.backbone.norms[0]
    coder.encode(support, query, training=False)
    assert torch.equal(norm.running_mean, torch.zeros(4, dtype=torch.float64))
    coder.encode(support, query, training=True)
    moved = norm.running_mean.abs().sum() > 0
    assert moved == (mode in (Normalization.BATCH, Normalization.GHOST))
