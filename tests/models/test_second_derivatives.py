"""Every backbone can be differentiated twice in its weights, which inner loops on them need."""

import pytest
import torch
from torch.func import functional_call

from bilevel_models import EACH_SET, ConvNet, Statistics, create_model, differentiable_twice

MAKERS = {
    "strided": lambda: ConvNet(channels=1, image_size=8, filters=2, pool=False, depth=2),
    "pooled": lambda: ConvNet(channels=1, image_size=8, filters=2, pool=True, depth=2),
    "rn": lambda: create_model("rn", channels=1, image_size=16, filters=2),
    "resnet12": lambda: create_model("resnet12", channels=1, image_size=16, filters=2),
    "torchvision": lambda: create_model("torchvision:resnet18", channels=1, image_size=64),
}


@pytest.mark.parametrize("statistics", [EACH_SET, Statistics(first=3)], ids=["own", "first"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_gradient_of_a_step_is_the_central_difference(name, statistics):
    torch.manual_seed(0)
    network = MAKERS[name]().double()
    size = 64 if name == "torchvision" else 16 if name.startswith("r") else 8
    images = torch.rand(5, 1, size, size, dtype=torch.float64)
    weights = {key: value.detach() for key, value in network.named_parameters()}
    towards = {key: torch.randn_like(value) for key, value in weights.items()}

    def loss(w):
        with differentiable_twice():
            return functional_call(network, w, (images, statistics)).tanh().mean()

    def after_a_step(w):
        w = {key: value.detach().requires_grad_() for key, value in w.items()}
        grads = torch.autograd.grad(loss(w), list(w.values()), create_graph=True)
        stepped = {key: w[key] - 0.01 * g for key, g in zip(w, grads, strict=True)}
        return loss(stepped), list(w.values())

    value, leaves = after_a_step(weights)
    grads = torch.autograd.grad(value, leaves)
    found = sum((g * t).sum() for g, t in zip(grads, towards.values(), strict=True))
    eps = 1e-8
    up, down = (
        after_a_step({k: w + sign * eps * towards[k] for k, w in weights.items()})[0]
        for sign in (1, -1)
    )
    torch.testing.assert_close(found, (up - down).detach() / (2 * eps), rtol=1e-4, atol=1e-5)


def test_what_can_be_differentiated_once_says_so():
    network = create_model("rn", channels=1, image_size=8, filters=2)
    value = network(torch.rand(3, 1, 8, 8)).square().mean()
    with pytest.raises(NotImplementedError, match="differentiable_twice"):
        torch.autograd.grad(value, list(network.parameters()), create_graph=True)
