"""Every backbone can be differentiated twice in its weights, which inner loops on them need."""

import pytest
import torch
from torch.func import functional_call

from bilevel_models import EACH_SET, ConvNet, Statistics, create_model, differentiable_twice
from bilevel_models.backbones.fused.own_weights import own_block

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


def tasks(count=3, images=4):
    """Return a strided network in float64, images of several tasks, and weights for each."""
    torch.manual_seed(0)
    network = MAKERS["strided"]().double()
    each = [
        {key: value.detach() + 0.1 * torch.randn_like(value) for key, value in named}
        for named in (list(network.named_parameters()) for _ in range(count))
    ]
    stacked = {key: torch.stack([one[key] for one in each]) for key in each[0]}
    return network, torch.rand(count, images, 1, 8, 8, dtype=torch.float64), each, stacked


class Each(torch.nn.Module):
    """`forward_each` as what `functional_call` calls."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network.forward_each(images)


def at_once(network, weights, images):
    named = {f"network.{key}": value for key, value in weights.items()}
    return functional_call(Each(network), named, (images,))


def test_tasks_with_their_own_weights_are_what_each_is_alone():
    network, images, each, stacked = tasks()
    apart = [functional_call(network, w, (x, EACH_SET)) for w, x in zip(each, images, strict=True)]
    torch.testing.assert_close(at_once(network, stacked, images), torch.stack(apart))
    shared = torch.stack([network(x) for x in images])
    torch.testing.assert_close(network.forward_each(images), shared)


@pytest.mark.parametrize("size", [5, 6])
def test_both_derivatives_of_a_block_of_tasks(size):
    torch.manual_seed(0)
    x, w, b = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, size, size, 2), (2, 2, 2, 3, 3), (2,))
    )
    assert torch.autograd.gradcheck(own_block, (x, w, b, 1e-3))
    assert torch.autograd.gradgradcheck(own_block, (x, w, b, 1e-3))


def test_the_gradient_of_a_step_of_tasks_is_the_loops():
    network, images, _, stacked = tasks()

    def after_a_step(run, w):
        w = {key: value.requires_grad_() for key, value in w.items()}
        loss = run(w).tanh().mean()
        grads = torch.autograd.grad(loss, list(w.values()), create_graph=True)
        stepped = {key: w[key] - g for key, g in zip(w, grads, strict=True)}
        return torch.autograd.grad(run(stepped).tanh().mean(), list(w.values()))

    def loop(w):
        ones = [{key: value[i] for key, value in w.items()} for i in range(len(images))]
        found = [
            functional_call(network, one, (x, EACH_SET))
            for one, x in zip(ones, images, strict=True)
        ]
        return torch.stack(found)

    together = after_a_step(lambda w: at_once(network, w, images), stacked)
    copies = {key: value.detach().clone() for key, value in stacked.items()}
    for mine, theirs in zip(together, after_a_step(loop, copies), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_third_derivative_and_a_network_that_pools_are_refused():
    network, images, _, stacked = tasks()
    w = {key: value.requires_grad_() for key, value in stacked.items()}
    leaves = list(w.values())
    value = at_once(network, w, images).square().mean()
    slope = torch.autograd.grad(value, leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match="twice"):
        torch.autograd.grad(sum(g.square().sum() for g in slope), leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match="pools"):
        MAKERS["pooled"]().forward_each(images)


def test_what_can_be_differentiated_once_says_so():
    network = create_model("rn", channels=1, image_size=8, filters=2)
    value = network(torch.rand(3, 1, 8, 8)).square().mean()
    with pytest.raises(NotImplementedError, match="differentiable_twice"):
        torch.autograd.grad(value, list(network.parameters()), create_graph=True)
