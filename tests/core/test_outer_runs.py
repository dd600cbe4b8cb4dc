"""Whole outer runs around the differentiable solve: L-BFGS, two processes, stochastic cleaning."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import multiprocessing
from torch.nn.functional import cross_entropy

from bilevel_core import (
    FixedPoint,
    GradientDescent,
    HeavyBall,
    Implicit,
    Interval,
    Problem,
    Reverse,
    Spectral,
    hypergradient,
    mean_objective,
    minimize,
    outer_objective,
    solve_inner,
)

# --- L-BFGS on the ridge regression of Table 5 ---------------------------------------------------


def table_5() -> tuple[Problem, GradientDescent]:
    """30 features, 5 of them informative, 30 examples to train on and 30 to validate."""
    draw = torch.Generator().manual_seed(0)
    w = torch.zeros(30, dtype=torch.float64)
    w[:5] = torch.rand(5, dtype=torch.float64, generator=draw)
    x = torch.randn(2, 30, 30, dtype=torch.float64, generator=draw)
    noise = 0.002 * w.norm() * torch.randn(2, 30, dtype=torch.float64, generator=draw)
    y = x @ w + noise

    def penalties(theta):
        return 1e-4 + (50.0 - 1e-4) * torch.sigmoid(theta)

    problem = Problem(
        inner=lambda w, theta: ((x[0] @ w - y[0]) ** 2).sum() + (penalties(theta) * w**2).sum(),
        outer=lambda w, theta: ((x[1] @ w - y[1]) ** 2).mean(),
        init=torch.zeros_like,
    )
    largest = 2 * (torch.linalg.matrix_norm(x[0], ord=2) ** 2 + 50.0).item()
    return problem, GradientDescent(step_size=1 / largest)


def test_l_bfgs_minimises_the_ridge_of_table_5():
    problem, descent = table_5()
    theta = torch.full((30,), -3.9, dtype=torch.float64, requires_grad=True)  # a penalty of 1
    lbfgs = torch.optim.LBFGS([theta], max_iter=25, line_search_fn="strong_wolfe")
    values = []

    def closure():
        lbfgs.zero_grad()
        value = outer_objective(problem, descent, theta, steps=250, engine=Spectral())
        value.backward()
        values.append(value.item())
        return value

    lbfgs.step(closure)
    adam = minimize(
        problem,
        descent,
        torch.full((30,), -3.9, dtype=torch.float64),
        steps=250,
        outer_steps=len(values),
        optimizer=partial(torch.optim.Adam, lr=0.5),
        engine=Spectral(),
    )
    assert min(values) < 0.1 * values[0]
    assert min(values) < adam.best_value
    # The last step is to Spectral what it is to the engine that takes all the steps.
    grad = hypergradient(problem, descent, theta, steps=250).grad
    closed = hypergradient(problem, descent, theta, steps=250, engine=Spectral()).grad
    torch.testing.assert_close(grad, closed, rtol=1e-6, atol=1e-12)


# --- λ in a module, on two processes ------------------------------------------------------------


class Learner(torch.nn.Module):
    """A representation that is λ; the inner problem fits a head on it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh()).double()
        self.problem = Problem(
            inner=lambda w, lam, d: (
                ((self.features(lam, d["x"][:6]) @ w - d["y"][:6]) ** 2).mean() + (w**2).sum()
            ),
            outer=lambda w, lam, d: ((self.features(lam, d["x"][6:]) @ w - d["y"][6:]) ** 2).mean(),
            init=lambda lam, d: torch.zeros(5, dtype=torch.float64),
        )

    def features(self, lam, x):
        return torch.func.functional_call(self.net, lam, (x,))

    def forward(self, tasks):
        lam, descent = dict(self.net.named_parameters()), GradientDescent(step_size=0.1)
        values = [
            outer_objective(self.problem, descent, lam, task, steps=4, engine=Reverse())
            for task in tasks
        ]
        return torch.stack(values).mean()


def tasks() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(5)
    return [
        {
            "x": torch.randn(10, 4, dtype=torch.float64, generator=draw),
            "y": torch.randn(10, dtype=torch.float64, generator=draw),
        }
        for _ in range(4)
    ]


def stacked(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([part[key] for part in parts]) for key in parts[0]}


def grads_by_ddp(rank: int, folder: str) -> None:
    """Take one step of two processes, by DDP and by `mean_objective`, and write its gradients."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        torch.set_num_threads(1)
        learner = Learner()
        shared = torch.nn.parallel.DistributedDataParallel(learner)
        for part in (tasks()[rank::2], tasks()[rank::2]):  # gradients accumulate
            shared(part).backward()
        grads = [p.grad / 2 for p in learner.parameters()]
        lam = dict(learner.net.named_parameters())
        value = mean_objective(
            learner.problem, GradientDescent(step_size=0.1), lam, stacked(tasks()), steps=4
        )
        means = torch.autograd.grad(value, list(lam.values()))
        flat = torch.cat([g.flatten() for g in (*grads, *means, value.detach())])
        Path(folder, f"{rank}.txt").write_text(" ".join(repr(x) for x in flat.tolist()))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.process
def test_ddp_over_two_processes_gives_the_gradient_of_one(tmp_path):
    multiprocessing.spawn(grads_by_ddp, (str(tmp_path),), nprocs=2)
    learner = Learner()
    value = learner(tasks())
    value.backward()
    grads = torch.cat([p.grad.flatten() for p in learner.parameters()])
    expected = torch.cat([grads, grads, value.detach()[None]])
    for rank in (0, 1):
        numbers = [float(word) for word in (tmp_path / f"{rank}.txt").read_text().split()]
        found = torch.tensor(numbers, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


# --- hyper-cleaning of the digits, stochastic and warm-started -----------------------------------


@dataclass
class Digits:
    """Training images, half with a wrong label; trusted ones; and test images."""

    x: torch.Tensor
    y: torch.Tensor
    trusted: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    looked: int = 0  # examples of the training set whose gradient was taken

    def loss(self, w, lam, rows):
        self.looked += len(rows)
        each = cross_entropy(self.x[rows] @ w, self.y[rows], reduction="none")
        return (lam[rows] * each).mean() + 0.005 * (w**2).sum()

    def error(self, lam):
        """Return the test error, in per cent, of what all examples train with these weights."""
        rows = torch.arange(len(self.x))
        whole = Problem(
            inner=lambda w, lam: self.loss(w, lam, rows), outer=lambda w, lam: w.sum(), init=zeros
        )
        with torch.no_grad():
            dynamics = HeavyBall(step_size=0.3, momentum=0.9)
            w = solve_inner(whole, dynamics, lam, steps=150)
        return 100 * float(((self.test[0] @ w).argmax(1) != self.test[1]).double().mean())


def zeros(lam, data=None):
    return torch.zeros(65, 10, dtype=lam.dtype)


def digits() -> Digits:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = map(torch.as_tensor, datasets.load_digits(return_X_y=True))
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=draw)
    x = torch.nn.functional.pad(pixels[order] / 16, (0, 1), value=1.0)
    y = labels[order].long()
    wrong = torch.arange(1000) % 2 == 0
    noisy = torch.where(
        wrong, (y[:1000] + torch.randint(1, 10, (1000,), generator=draw)) % 10, y[:1000]
    )
    return Digits(x[:1000], noisy, (x[1000:1300], y[1000:1300]), (x[1300:], y[1300:]))


def rows_of(k: int, count: int, whole: int) -> torch.Tensor:
    return torch.randint(0, whole, (count,), generator=torch.Generator().manual_seed(k))


@pytest.mark.slow
def test_stochastic_cleaning_reaches_the_full_error_with_fewer_gradients():
    data, lam = digits(), torch.full((1000,), 0.5, dtype=torch.float64)
    x, y = data.trusted
    within = {"reparametrize": Interval(low=0.0, high=1.0)}
    before = data.error(lam)

    every = torch.arange(1000)
    data.looked = 0
    full = minimize(
        Problem(
            inner=lambda w, lam: data.loss(w, lam, every),
            outer=lambda w, lam: cross_entropy(x @ w, y),
            init=zeros,
        ),
        HeavyBall(step_size=0.3, momentum=0.9),
        lam,
        steps=40,
        outer_steps=15,
        optimizer=partial(torch.optim.Adam, lr=0.5),
        **within,
    )
    by_full, data.looked = data.looked + 15 * 40 * 1000, 0  # a product with ∇²L in each step back
    stochastic = minimize(
        Problem(
            inner=lambda w, lam, part: data.loss(w, lam, part["rows"]),
            outer=lambda w, lam, part: cross_entropy(x[part["held"]] @ w, y[part["held"]]),
            init=zeros,
        ),
        GradientDescent(step_size=0.5),
        lam,
        lambda k: {"rows": rows_of(2 * k, 200, 1000), "held": rows_of(2 * k + 1, 100, 300)},
        steps=2,
        outer_steps=250,
        optimizer=partial(torch.optim.Adam, lr=0.3),
        engine=Implicit(
            solver=FixedPoint(steps=3, step_size=0.5), tolerance=None, stationarity=None
        ),
        warm_start=True,
        **within,
    )
    by_stochastic = data.looked + 250 * (3 + 1) * 200  # products of the solver, and the last one
    assert 5 * by_stochastic < by_full
    one = 100 / len(data.test[0])
    assert data.error(stochastic.lam) <= data.error(full.lam) + one < before - 4
