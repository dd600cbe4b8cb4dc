"""torchvision's models as backbones: the same numbers, and statistics that are told."""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from bilevel_models import EACH_SET, RUNNING, OffsetNorm2d, Statistics, create_model
from bilevel_models.backbones import torchvision_library as import_torchvision
from bilevel_models.backbones.context_norm import AmbientNorm2d, explicit_norms, using
from bilevel_models.backbones.torchvision_library import torchvision_module

needed = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is an extra"
)


def stock(name):
    torch.manual_seed(0)
    model = torchvision_module("torchvision.models").get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, mean=0.5, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def standardised(x):
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    return (x - mean) / std


@needed
@pytest.mark.parametrize(("statistics", "training"), [(RUNNING, False), (EACH_SET, True)])
def test_features_are_what_goes_into_the_last_layer(statistics, training):
    theirs = stock("resnet18")
    weights = {k: v.clone() for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours = create_model("torchvision:resnet18", image_size=40, weights=weights).double()
    x = torch.rand(3, 3, 40, 40, dtype=torch.float64)
    theirs.fc = nn.Identity()
    expected = theirs.double().train(training)(standardised(x))
    torch.testing.assert_close(ours(x, statistics), expected, rtol=1e-6, atol=1e-6)
    assert ours.dim == 512
    assert sum(p.numel() for p in ours.parameters()) == 11_689_512 - 513 * 1000


@needed
def test_grey_images_are_grey():
    grey = create_model("torchvision:squeezenet1_1", channels=1, image_size=32)
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), grey(x.expand(-1, 3, -1, -1)))


@needed
def test_a_model_without_batch_norm_passes_through():
    model = create_model("torchvision:squeezenet1_1", image_size=32)
    x = torch.rand(4, 3, 32, 32)
    for statistics in (RUNNING, Statistics(first=1), Statistics(track=True)):
        assert torch.equal(model(x, statistics), model(x, EACH_SET))


@needed
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0"])
def test_nothing_is_drawn_in_a_pass(name):
    model = create_model(f"torchvision:{name}", image_size=32)
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(model.train()(x, RUNNING), model.eval()(x, RUNNING))


@needed
@pytest.mark.nightly
def test_every_model_can_be_one():
    models = torchvision_module("torchvision.models")
    dims = {}
    for name in models.list_models(module=models):
        if name.startswith("regnet") and name != "regnet_y_400mf":  # computes while it is built
            continue
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            model = create_model(f"torchvision:{name}")
        dims[name] = model.dim
        left = {type(m).__name__ for m in model.modules()}
        assert not left & {"BatchNorm2d", "Dropout", "StochasticDepth"}, name
        assert not any(p.shape[0] == 1000 for p in model.parameters()), name
    assert len(dims) > 60
    assert (dims["vit_b_16"], dims["convnext_tiny"], dims["swin_t"]) == (768, 768, 768)
    assert (dims["inception_v3"], dims["regnet_y_400mf"], dims["vgg11"]) == (2048, 440, 4096)


@needed
def test_mistakes_are_named():
    for name, options, message in [
        ("resnet81", {}, "no classification model 'resnet81': choose one such as .*resnet18"),
        ("fcn_resnet50", {}, "no classification model 'fcn_resnet50'"),
        ("resnet18", {"filters": 8}, "no option filters: it has channels, image_size, weights"),
        ("resnet18", {"channels": 4}, "channels=4: torchvision's models take 1 or 3"),
        ("vgg11", {"image_size": 28}, "vgg11 cannot take images of 28×28: .*too small"),
        ("vit_b_32", {"image_size": 84}, "vit_b_32 cannot take images of 84×84: .*patch size"),
        ("maxvit_t", {"image_size": 84}, "maxvit_t cannot take images of 84×84: Input size"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            create_model(f"torchvision:{name}", **options)
        assert "\n" not in str(error.value)


@needed
def test_weights_that_do_not_fit_are_refused():
    weights = stock("squeezenet1_1").state_dict()
    key = "features.0.weight"
    with pytest.raises(ValueError, match=r"0\.weight' has shape \(3,\) instead of \(64, 3"):
        create_model("torchvision:squeezenet1_1", weights=weights | {key: torch.ones(3)})
    del weights[key]
    with pytest.raises(ValueError, match=r"they have no 'features\.0\.weight'"):
        create_model("torchvision:squeezenet1_1", weights=weights)


def ambient():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(2)))
    explicit_norms(network)
    return network.double()


def test_statistics_end_with_the_pass_even_a_failed_one():
    network, x = ambient(), torch.rand(3, 2, 4, 4, dtype=torch.float64)
    with pytest.raises(LookupError):
        network(x)
    with using(RUNNING):
        expected = network(x)
        with pytest.raises(ZeroDivisionError), using(EACH_SET):
            raise ZeroDivisionError
        assert torch.equal(network(x), expected)
    with pytest.raises(LookupError):
        network(x)


def test_threads_have_statistics_of_their_own():
    network, x = ambient(), torch.rand(6, 2, 4, 4, dtype=torch.float64)
    all_statistics = [RUNNING, EACH_SET, Statistics(first=2), Statistics(first=4)]
    barrier = Barrier(len(all_statistics))

    def run(statistics):
        with using(statistics):
            barrier.wait(timeout=60)
            return network(x)

    with ThreadPoolExecutor(len(all_statistics)) as pool:
        together = list(pool.map(run, all_statistics))
    for statistics, found in zip(all_statistics, together, strict=True):
        with using(statistics):
            assert torch.equal(network(x), found)
    assert not torch.equal(together[0], together[1])


def test_a_replaced_norm_keeps_what_it_was():
    old = nn.BatchNorm2d(2, eps=1e-2, momentum=0.3)
    for tensor in (old.weight, old.bias, old.running_mean):
        nn.init.normal_(tensor)
    network = nn.Sequential(old)
    explicit_norms(network)
    (new,) = network
    assert isinstance(new, AmbientNorm2d)
    assert isinstance(new.norm, OffsetNorm2d)
    x = torch.rand(4, 2, 3, 3)
    with using(Statistics(track=True)):
        found = network(x)
    mean = new.norm.running_mean.clone()
    assert torch.allclose(found, old(x))  # which moves the averages that they share once more
    assert torch.allclose(new.norm.running_mean, 0.7 * mean + 0.3 * x.mean((0, 2, 3)))


def test_an_import_without_operators_is_tried_again(monkeypatch):
    calls = []

    def importer(name):
        calls.append(name)
        if len(calls) == 1:
            raise RuntimeError("operator torchvision::nms does not exist")
        return "module"

    monkeypatch.setattr(import_torchvision, "import_module", importer)
    monkeypatch.setattr(import_torchvision, "_declare_operators", lambda: calls.append("declared"))
    assert torchvision_module("torchvision.models") == "module"
    assert calls == ["torchvision.models", "declared", "torchvision.models"]
    assert torchvision_module("torchvision.ops") == "module"
    assert calls[3:] == ["torchvision.ops"]  # nothing is declared where nothing is missing


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (RuntimeError("out of cheese"), RuntimeError, "out of cheese"),
        (ModuleNotFoundError("no PIL", name="PIL"), ModuleNotFoundError, "no PIL"),
        (ModuleNotFoundError("", name="torchvision"), ValueError, r"its extra \[torchvision\]"),
    ],
)
def test_other_failures_of_the_import_are_told(monkeypatch, failure, kind, message):
    def importer(name):
        raise failure

    monkeypatch.setattr(import_torchvision, "import_module", importer)
    monkeypatch.setattr(import_torchvision, "_declare_operators", lambda: pytest.fail("declared"))
    with pytest.raises(kind, match=message):
        torchvision_module("torchvision.models")


@pytest.mark.process
def test_it_is_imported_only_when_asked_for():
    code = "import sys, bilevel_models; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
