"""Regression on sinusoids: the tasks, the network, and how methods are trained on it.

y = a sin(x - φ), a ~ U[0.1, 5], φ ~ U[0, π], x ~ U[-5, 5], squared error, 1-40-40-1 rectified.
Source: Model-Agnostic Meta-Learning (Finn et al., 2017), section 5.1.
"""

import math

import torch
from torch import nn
from torch.nn.functional import mse_loss

from bilevel_core import GradientDescent
from bilevel_meta.adaptation import Adaptation, AdaptedNetwork, StepSizes

TASKS, SHOT = 25, 10
STEP = 0.01


def network():
    return nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )


def squared_error(outputs, targets):
    return (outputs - targets).square().mean()


def draw(count, shot, query, generator):
    """Support and query inputs and targets, (count, shot or query, 1) each."""

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator)

    a, phase = uniform(0.1, 5, count, 1, 1), uniform(0, math.pi, count, 1, 1)
    x, q = uniform(-5, 5, count, shot, 1), uniform(-5, 5, count, query, 1)
    return x, a * (x - phase).sin(), q, a * (q - phase).sin()


def adapted(method, seed=0):
    torch.manual_seed(seed)
    settings = {
        "maml": {},
        "fomaml": {"first_order": True},
        "meta-sgd": {"step_sizes": StepSizes.COORDINATE},
        "anil": {"moves": lambda name: name.startswith("4.")},
        "reptile": {"dynamics": GradientDescent(step_size=0.02)},
        "pretrained": {},
    }[method]
    adaptation = Adaptation(steps=1, step_size=STEP, **settings)
    return AdaptedNetwork(network(), squared_error, adaptation)


def train(method, iterations, seed=0):
    """Meta-train with 25 tasks an iteration, and return what adapts to new tasks."""
    made, generator = adapted(method, seed), torch.Generator().manual_seed(seed)
    reptile = method == "reptile"
    outer = torch.optim.SGD if reptile else torch.optim.Adam
    optimizer = outer(made.parameters(), lr=0.5 if reptile else 1e-3)
    for k in range(iterations):
        x, y, q, z = draw(TASKS, SHOT, SHOT, generator)
        if method == "pretrained":
            loss = mse_loss(made.network(x), y)
        elif reptile:
            optimizer.param_groups[0]["lr"] = 0.5 * (1 - k / iterations)
            loss = follow(made, x, y, steps=8)
        else:
            loss = made.query_losses(x, y, q, z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made


def follow(made, x, y, steps):
    """A scalar whose gradient is θ - mean w_T."""
    with torch.no_grad():
        ends = torch.vmap(lambda x, y: made.solve({"x": x, "y": y}, steps=steps))(x, y)
    start = made.lam()["start"]
    return sum(((start[k].detach() - ends[k].mean(dim=0)) * start[k]).sum() for k in start)


def errors(made, shot, steps, tasks=600):
    """Mean squared error on 100 points of new tasks after so many steps."""
    drawn = draw(tasks, shot, 100, torch.Generator().manual_seed(10_000 + shot))
    with torch.no_grad():
        return float(made.query_losses(*drawn, steps=steps).mean())
