"""Whose statistics: each mode against the formula, in float64."""

import importlib.util

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
    list_models,
)

MODES = list(Normalization)
BACKBONES = [
    *list_models(),
    pytest.param(
        "torchvision:shufflenet_v2_x0_5",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("torchvision") is None, reason="torchvision is an extra"
        ),
    ),
]


@pytest.fixture(params=[False, True], ids=["offset", "scale and offset"])
def scale(request) -> bool:
    return request.param


def norm_layer(scale: bool) -> OffsetNorm2d:
    layer = OffsetNorm2d(3, scale=scale).double()
    with torch.no_grad():
        if scale:
            layer.weight.copy_(torch.tensor([2.0, -0.5, 0.3]))
        layer.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.running_mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
        layer.running_var.copy_(torch.tensor([1.0, 2.0, 0.5]))
    return layer


def images(n: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(n, 3, 4, 5, dtype=torch.float64, generator=generator)


def by_formula(x, mean, var, layer):
    gamma = torch.ones(3) if layer.weight is None else layer.weight
    mean, var, gamma, beta = (v.view(1, -1, 1, 1) for v in (mean, var, gamma, layer.bias))
    return gamma * (x - mean) / torch.sqrt(var + 1e-3) + beta


@pytest.mark.parametrize("first", [None, 1, 2, 6])
def test_statistics_of_the_first_images(first, scale):
    layer, x = norm_layer(scale), images()
    of = x[:first]
    expected = by_formula(x, of.mean((0, 2, 3)), of.var((0, 2, 3), correction=0), layer)
    assert torch.allclose(layer(x, Statistics(first=first)), expected, rtol=1e-12, atol=1e-12)


def test_running_statistics_are_used_and_not_changed(scale):
    layer, x = norm_layer(scale), images()
    before = layer.running_mean.clone(), layer.running_var.clone()
    expected = by_formula(x, *before, layer)
    assert torch.allclose(layer(x, RUNNING), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])


def test_running_statistics_follow_only_when_asked(scale):
    layer, x = norm_layer(scale), images()
    before = layer.running_mean.clone(), layer.running_var.clone()
    layer(x, EACH_SET)
    assert torch.equal(layer.running_mean, before[0])
    layer(x, Statistics(track=True))
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    assert torch.allclose(layer.running_mean, 0.9 * before[0] + 0.1 * mean)
    assert torch.allclose(layer.running_var, 0.9 * before[1] + 0.1 * var)


@pytest.mark.parametrize("first", [0, -1])
def test_statistics_of_no_images_are_refused(first):
    with pytest.raises(ValueError, match=f"^first must be at least 1, found {first}: "):
        Statistics(first=first)


@pytest.mark.parametrize(
    "options",
    [
        {"first": 2, "track": True},
        {"running": True, "track": True},
        {"running": True, "first": 2},
    ],
    ids=str,
)
def test_statistics_of_two_kinds_at_once_are_refused(options):
    with pytest.raises(ValueError, match=r"^expected one of running, first and track, found"):
        Statistics(**options)


@pytest.mark.parametrize("statistics", [EACH_SET, RUNNING, Statistics(first=2)])
def test_gradcheck(statistics: Statistics, scale):
    layer = norm_layer(scale)
    x = images(4).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (x, statistics)
        )

    assert len(names) == 1 + scale
    assert torch.autograd.gradcheck(run, (x, *values))


def encoder(mode: Normalization, name: str) -> Encoder:
    torch.manual_seed(0)
    options = {} if ":" in name else {"filters": 4}
    backbone = create_model(name, channels=1, image_size=40, **options).double()
    return Encoder(backbone=backbone, normalization=mode)


def episodes(batch: int = 3, n: int = 4, m: int = 6, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 40, 40)
    return (
        torch.rand(batch, n, *shape, dtype=torch.float64, generator=generator),
        torch.rand(batch, m, *shape, dtype=torch.float64, generator=generator),
    )


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("mode", MODES)
def test_inductive_means_that_a_query_alone_has_the_same_features(mode: Normalization, name: str):
    support, query = episodes()
    coder = encoder(mode, name)
    _, together = coder(support, query, training=False)
    _, alone = coder(support, query[:, :1], training=False)
    same = torch.allclose(together[:, :1], alone, rtol=1e-10, atol=1e-12)
    assert same == mode.inductive


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_an_episode_depends_on_others_only_in_batch_mode_while_training(mode, training, name):
    support, query = episodes()
    coder = encoder(mode, name)
    _, all_three = coder(support, query, training=training)
    coder = encoder(mode, name)
    _, first_only = coder(support[:1], query[:1], training=training)
    independent = torch.allclose(all_three[:1], first_only, rtol=1e-10, atol=1e-12)
    assert independent == (not (training and mode is Normalization.BATCH))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("mode", MODES)
def test_running_averages_move_in_training_alone_and_only_where_test_uses_them(mode, name):
    support, query = episodes()
    coder = encoder(mode, name)
    norms = [m for m in coder.backbone.modules() if isinstance(m, OffsetNorm2d)]
    assert len(norms) >= 4
    coder(support, query, training=False)
    assert all(torch.equal(n.running_mean, torch.zeros_like(n.running_mean)) for n in norms)
    coder(support, query, training=True)
    for norm in norms:
        moved = norm.running_mean.abs().sum() > 0
        assert moved == (mode in (Normalization.BATCH, Normalization.GHOST))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_the_slope_along_a_line(mode, name):
    """⟨∇E, v⟩ against central differences of E along v, through every weight."""
    support, query = episodes(batch=2, n=3, m=4)
    coder = encoder(mode, name)
    weights = list(coder.backbone.parameters())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # off the rectifiers' corners, where an offset of zero may put them
        for w in weights:
            if w.dim() == 1:
                w.add_(0.1 * torch.randn(w.shape, generator=generator))
    line = [0.1 * torch.randn(w.shape, generator=generator).double() for w in weights]

    def energy():
        h_s, h_q = coder(support, query, training=True)
        return torch.tanh(h_s).sum() + torch.tanh(h_q).square().sum()

    energy().backward()
    slope = sum(float((w.grad * v).sum()) for w, v in zip(weights, line, strict=True))

    values, step = [], 1e-9  # deep networks on few images have many corners nearby
    for sign in (1, -2):
        with torch.no_grad():
            for w, v in zip(weights, line, strict=True):
                w.add_(v, alpha=sign * step)
        values.append(float(energy().detach()))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-4)
