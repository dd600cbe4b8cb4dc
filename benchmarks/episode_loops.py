"""Hyper-iterations as few-shot libraries write them: a Python loop over the episodes.

Each episode's images go through the network once, and autograd runs through the T steps of its
head. Stock modules, float32, the default order in memory, as in the examples of those libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.episodes import Episodes
from bilevel_models import ConvNet, OffsetNorm2d

__all__ = ["LOOPS", "hyper_iteration", "stock_network"]

Train: TypeAlias = Callable[[Tensor, Tensor, Tensor, int], nn.Module | Callable[[Tensor], Tensor]]
"""Features, labels, η and T to a trained head; the last label is way - 1."""


def stock_network(model: ConvNet) -> nn.Module:
    """Return a network of torch's own layers with the weights of another."""
    layers: list[nn.Module] = []
    for convolution, norm in zip(model.convolutions, model.norms, strict=True):
        copy = nn.Conv2d(
            convolution.in_channels,
            convolution.out_channels,
            3,
            stride=convolution.stride,
            padding=1,
            bias=False,
        )
        copy.load_state_dict({"weight": convolution.weight.detach().contiguous()})
        layers += [copy, _stock_norm(norm), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if model.pool else []
    return nn.Sequential(*layers, nn.Flatten())


def _stock_norm(norm: OffsetNorm2d) -> nn.BatchNorm2d:
    """Return torch's own normalisation with the offsets and running averages of another."""
    copy = nn.BatchNorm2d(len(norm.bias), eps=norm.eps, momentum=norm.momentum)
    own = {name: value.detach().clone() for name, value in norm.state_dict().items()}
    copy.load_state_dict(copy.state_dict() | own)
    return copy


def hyper_iteration(
    network: nn.Module, train: Train, episodes: Episodes, *, steps: int, lr: Tensor, scale: Tensor
) -> float:
    """Add the hypergradient in all weights, η and s to their `grad`; return the loss."""
    total = 0.0
    sets = (episodes.support, episodes.query, episodes.support_labels, episodes.query_labels)
    for support, query, support_labels, query_labels in zip(*sets, strict=True):
        images = torch.cat((support, query)).contiguous()
        features = functional.normalize(network(images), dim=-1) * scale.exp()
        h_s, h_q = features.split((len(support), len(query)))
        head = train(h_s, support_labels, lr.exp(), steps)
        loss = functional.cross_entropy(head(h_q), query_labels) / len(episodes.support)
        loss.backward()
        total += float(loss.detach())
    return total


def _zeros(h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    way = int(labels.max()) + 1
    return h.new_zeros(way, h.shape[1]).requires_grad_(), h.new_zeros(way).requires_grad_()


def by_hand(h: Tensor, labels: Tensor, lr: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """Unroll in plain autograd."""
    w, b = _zeros(h, labels)
    for _ in range(steps):
        loss = functional.cross_entropy(functional.linear(h, w, b), labels)
        g_w, g_b = torch.autograd.grad(loss, (w, b), create_graph=True)
        w, b = w - lr * g_w, b - lr * g_b
    return lambda x: functional.linear(x, w, b)


def by_higher(h: Tensor, labels: Tensor, lr: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """Take differentiable SGD steps on a patched linear layer."""
    import higher

    head = nn.Linear(h.shape[1], int(labels.max()) + 1, device=h.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    plain = torch.optim.SGD(head.parameters(), lr=1.0)
    with higher.innerloop_ctx(head, plain, override={"lr": [lr]}) as (patched, optimizer):
        for _ in range(steps):
            optimizer.step(functional.cross_entropy(patched(h), labels))
        return patched


def by_torchopt(h: Tensor, labels: Tensor, lr: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """Take the steps of TorchOpt's functional SGD, out of place."""
    import torchopt

    w = _zeros(h, labels)
    optimizer = torchopt.sgd(lr=lr)
    memory = optimizer.init(w)
    for _ in range(steps):
        loss = functional.cross_entropy(functional.linear(h, *w), labels)
        grads = torch.autograd.grad(loss, w, create_graph=True)
        updates, memory = optimizer.update(grads, memory, params=w, inplace=False)
        w = torchopt.apply_updates(w, updates, inplace=False)
    return lambda x: functional.linear(x, *w)


# Each with the package that it needs.
LOOPS: dict[str, tuple[Train, str | None]] = {
    "loop": (by_hand, None),
    "higher": (by_higher, "higher"),
    "torchopt": (by_torchopt, "torchopt"),
}
