"""Regression on sinusoids, the toy on which methods of the inner loop part in seconds.

y = a sin(x - φ), a ~ U[0.1, 5], φ ~ U[0, π], x ~ U[-5, 5], squared error, 1-40-40-1 rectified.

Source: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks (Finn, Abbeel, Levine,
2017), section 5.1 and its code.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bilevel_core import GradientDescent
from bilevel_meta.adaptation import Adaptation, AdaptedNetwork, StepSizes

__all__ = ["METHODS", "Sinusoids", "draw", "errors", "train"]

TASKS, SHOT = 25, 10
STEP = 0.01
REPTILE_STEPS = 8

METHODS: dict[str, dict[str, Any]] = {
    "maml": {},
    "fomaml": {"first_order": True},
    "meta-sgd": {"step_sizes": StepSizes.COORDINATE},
    "anil": {"moves": lambda name: name.startswith("4.")},
    "reptile": {"dynamics": GradientDescent(step_size=0.02)},
    "pretrained": {},
}
"""What each method is as an `Adaptation`, beside T = 1 and η = 0.01."""


class Sinusoids(NamedTuple):
    """Tasks: support inputs and targets, then those of the query, (tasks, examples, 1) each."""

    x: Tensor
    y: Tensor
    x_query: Tensor
    y_query: Tensor


def draw(tasks: int, shot: int, query: int, generator: torch.Generator) -> Sinusoids:
    """Return so many tasks, drawn from a generator."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    a, phase = uniform(0.1, 5, tasks, 1, 1), uniform(0, math.pi, tasks, 1, 1)
    x, q = uniform(-5, 5, tasks, shot, 1), uniform(-5, 5, tasks, query, 1)
    return Sinusoids(x, a * (x - phase).sin(), q, a * (q - phase).sin())


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of (f(x) - y)²."""
    return (outputs - targets).square().mean()


def train(method: str, iterations: int, *, seed: int = 0) -> AdaptedNetwork:
    """Return a network that was meta-trained on 25 tasks an iteration, 10 examples each.

    Adam with rate 1e-3; Reptile by its own rule, ε from 0.5 to 0 and 8 inner steps of size 0.02.

    Args:
        method: one of `METHODS`; `pretrained` fits all tasks as one.
        iterations: outer steps.
        seed: of the initial weights and the tasks.
    """
    torch.manual_seed(seed)
    layers = (nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    adaptation = Adaptation(steps=1, step_size=STEP, **METHODS[method])
    made = AdaptedNetwork(nn.Sequential(*layers), squared_error, adaptation)
    generator = torch.Generator().manual_seed(seed)
    reptile = method == "reptile"
    optimizer: torch.optim.Optimizer = torch.optim.Adam(made.parameters(), lr=1e-3)
    if reptile:
        optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
    for k in range(iterations):
        tasks = draw(TASKS, SHOT, SHOT, generator)
        if method == "pretrained":
            loss = squared_error(made.network(tasks.x), tasks.y)
        elif reptile:
            optimizer.param_groups[0]["lr"] = 0.5 * (1 - k / iterations)
            loss = _towards_the_ends(made, tasks)
        else:
            loss = made.query_losses(*tasks).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return made


def _towards_the_ends(made: AdaptedNetwork, tasks: Sinusoids) -> Tensor:
    """Return a scalar whose gradient is θ - mean w_T."""

    def end(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return made.solve({"x": x, "y": y}, steps=REPTILE_STEPS)

    with torch.no_grad():
        ends = torch.vmap(end)(tasks.x, tasks.y)
    total = tasks.x.new_zeros(())
    for name, theta in made.lam()["start"].items():
        total = total + ((theta.detach() - ends[name].mean(dim=0)) * theta).sum()
    return total


def errors(made: AdaptedNetwork, *, shot: int, steps: int, tasks: int = 600) -> Tensor:
    """Return the mean squared error on 100 points of each new task after so many inner steps.

    Where the largest eigenvalue of a task's ∇²L is above 2/η = 200, the steps grow. Five points at
    one end of the interval can have more than 400, and then a few steps take the error to 10⁸ or
    beyond float32: that is the step size, and nothing that the start could mend.

    Args:
        made: the network.
        shot: support points a task.
        steps: T.
        tasks: how many; the same for every network.

    Returns:
        (tasks,); not finite where a run overflows.
    """
    drawn = draw(tasks, shot, 100, torch.Generator().manual_seed(10_000 + shot))
    with torch.no_grad():
        return made.query_losses(*drawn, steps=steps)
