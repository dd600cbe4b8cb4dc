"""The problems of engines.py, and the ways to their hypergradient: the engines and their peers.

Every contender is given the same objectives, the same start and the same step size. A peer is used
as its own documentation shows it: differentiable steps on one graph, then one reverse pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

import torch
from torch.nn.functional import cross_entropy

from bilevel_core import (
    Checkpointed,
    ConjugateGradient,
    Direct,
    Forward,
    GradientDescent,
    Implicit,
    Instance,
    Problem,
    Pulled,
    Reverse,
    Solution,
    Truncated,
    Unrolled,
    hypergradient,
)
from bilevel_core.abstract import Backend, Engine
from bilevel_core.tree import leaves
from bilevel_core.types import Tree

__all__ = ["CASES", "CONTENDERS", "WEIGHTS", "Case", "Contender", "CountStates"]

FEATURES, CLASSES, EXAMPLES, LATENT = 10_000, 10, 128, 10
WEIGHTS = FEATURES * CLASSES
Answer: TypeAlias = tuple[torch.Tensor, dict[str, torch.Tensor]]


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem, λ, and the names of those who take part; λ["log_lr"] is the log step size."""

    title: str
    problem: Problem
    lam: dict[str, torch.Tensor]
    names: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to (f_T, ∇f_T), float32.

    Attributes:
        run: `run(case, steps)` returns f_T and a gradient like λ.
        exact: whether it computes ∇f_T, and not the gradient of the limit or an approximation.
        package: what must be installed for it.
    """

    run: Callable[[Case, int], Answer]
    exact: bool = True
    package: str | None = None


def logistic_regression(title: str, names: tuple[str, ...], penalties: tuple[int, ...]) -> Case:
    """Return min_λ CE(w_T) on new examples, L_λ(w) = CE(w) + ½ Σ exp(λ) w², 10⁵ weights.

    `penalties` is the shape of λ["log_penalty"], which broadcasts against w (features, classes).
    The examples are noisy images of a few latent numbers, which decide the class, scaled so that
    XXᵀ/n has the largest eigenvalue 1. The step size is 1/L with the curvature bounded by
    L = 1/2 + penalty; the contraction factor is at most 1 - penalty/L.
    """
    numbers = torch.Generator().manual_seed(0)
    latent = torch.randn(2, EXAMPLES, LATENT, generator=numbers)
    x = latent @ torch.randn(LATENT, FEATURES, generator=numbers)
    x += torch.randn(2, EXAMPLES, FEATURES, generator=numbers)
    x /= torch.linalg.matrix_norm(x[0], ord=2) / EXAMPLES**0.5
    logits = latent @ torch.randn(LATENT, CLASSES, generator=numbers)
    y = (logits + torch.randn(2, EXAMPLES, CLASSES, generator=numbers)).argmax(dim=2)
    penalty = 0.002  # Small enough that no adjoint is denormal, and slow, after 10,000 steps.
    problem = Problem(
        inner=lambda w, lam: (
            cross_entropy(x[0] @ w, y[0]) + 0.5 * (lam["log_penalty"].exp() * w * w).sum()
        ),
        outer=lambda w, lam: cross_entropy(x[1] @ w, y[1]),  # noqa: ARG005
        init=lambda lam: torch.zeros(FEATURES, CLASSES),  # noqa: ARG005
    )
    lam = {
        "log_penalty": torch.full(penalties, penalty).log(),
        "log_lr": torch.tensor(1 / (0.5 + penalty)).log(),
    }
    return Case(title=title, problem=problem, lam=lam, names=names)


def step_size(lam: dict[str, torch.Tensor], t: int) -> torch.Tensor:
    """Return exp(λ["log_lr"]) at every step."""
    del t
    return lam["log_lr"].exp()


def by_engine(engine: Engine) -> Callable[[Case, int], Answer]:
    """Return the run of an engine, through the entry point that a user calls."""

    def run(case: Case, steps: int) -> Answer:
        descent = GradientDescent(step_size=step_size)
        computed = hypergradient(case.problem, descent, case.lam, steps=steps, engine=engine)
        return computed.value, computed.grad

    return run


def differentiable(lam: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a λ to differentiate with respect to."""
    return {name: leaf.clone().requires_grad_() for name, leaf in lam.items()}


def pull_back(value: torch.Tensor, lam: dict[str, torch.Tensor]) -> Answer:
    """Return the value and its gradient by one reverse pass."""
    grads = torch.autograd.grad(value, list(lam.values()))
    return value.detach(), dict(zip(lam, grads, strict=True))


def by_hand(case: Case, steps: int) -> Answer:
    """Unroll in a dozen lines of plain autograd."""
    lam = differentiable(case.lam)
    w, eta = case.problem.init(lam).requires_grad_(), step_size(lam, 0)
    for _ in range(steps):
        (g,) = torch.autograd.grad(case.problem.inner(w, lam), w, create_graph=True)
        w = w - eta * g
    return pull_back(case.problem.outer(w, lam), lam)


class Weights(torch.nn.Module):
    """A module that is its weights: `higher` patches modules."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(w)

    def forward(self) -> torch.Tensor:
        """Return the weights."""
        return self.w


def by_higher(case: Case, steps: int) -> Answer:
    """Take differentiable SGD steps on a patched module, the step size overridden by λ's."""
    import higher

    lam = differentiable(case.lam)
    module = Weights(case.problem.init(lam))
    plain = torch.optim.SGD(module.parameters(), lr=1.0)
    override = {"lr": [step_size(lam, 0)]}
    with higher.innerloop_ctx(module, plain, override=override) as (patched, optimizer):
        for _ in range(steps):
            optimizer.step(case.problem.inner(patched(), lam))
        return pull_back(case.problem.outer(patched(), lam), lam)


def by_torchopt(case: Case, steps: int) -> Answer:
    """Take the steps of TorchOpt's functional SGD, out of place."""
    import torchopt

    lam = differentiable(case.lam)
    w = case.problem.init(lam).requires_grad_()
    optimizer = torchopt.sgd(lr=step_size(lam, 0))
    memory = optimizer.init(w)
    for _ in range(steps):
        (g,) = torch.autograd.grad(case.problem.inner(w, lam), w, create_graph=True)
        updates, memory = optimizer.update(g, memory, params=w, inplace=False)
        w = torchopt.apply_updates(w, updates, inplace=False)
    return pull_back(case.problem.outer(w, lam), lam)


CG = ConjugateGradient(tolerance=1e-6)  # The default is below the rounding of float32.

CONTENDERS = {
    "unroll by hand": Contender(run=by_hand),
    "higher": Contender(run=by_higher, package="higher"),
    "torchopt": Contender(run=by_torchopt, package="torchopt"),
    "Unrolled": Contender(run=by_engine(Unrolled())),
    "Reverse": Contender(run=by_engine(Reverse())),
    "Checkpointed": Contender(run=by_engine(Checkpointed())),
    "Forward": Contender(run=by_engine(Forward())),
    "Truncated, K = 10": Contender(run=by_engine(Truncated(horizon=10)), exact=False),
    # Its checks would refuse the short runs; the table shows how far it is off there.
    "Implicit": Contender(
        run=by_engine(Implicit(solver=CG, stationarity=None, tolerance=None)), exact=False
    ),
    "Direct": Contender(run=by_engine(Direct()), exact=False),
}

CASES: dict[str, Callable[[], Case]] = {
    "many": lambda: logistic_regression(
        f"one penalty a feature and the step size: {FEATURES + 1} hyperparameters",
        tuple(name for name in CONTENDERS if name != "Forward"),
        (FEATURES, 1),
    ),
    "few": lambda: logistic_regression(
        "one penalty and the step size: 2 hyperparameters",
        ("unroll by hand", "Reverse", "Forward"),
        (),
    ),
}


@final
class CountStates:
    """An engine as it is, with the arrays of a state's size that it holds at a time counted.

    Every array that an engine keeps comes from its backend's `detach`. Those that have as many
    entries as w are counted while they are alive: states, and the adjoint of the backward sweep.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now = self.most = 0

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run the engine on a backend that counts."""
        return self._engine.run(self._counted(instance), keep=keep)

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Go the engine's way back on a backend that counts."""
        return self._engine.pull(self._counted(instance), solution, cotangent)

    def _counted(self, instance: Instance) -> Instance:
        flow = replace(instance.flow, backend=_Counting(instance.backend, self))
        return replace(instance, flow=flow)

    def take(self, array: torch.Tensor) -> None:
        """Count an array until nothing refers to it."""
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(array, self._drop)

    def _drop(self) -> None:
        self.now -= 1


@final
class _Counting:
    """A backend whose `detach` reports what it returns."""

    def __init__(self, backend: Backend, counter: CountStates) -> None:
        self._backend, self._counter = backend, counter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def detach(self, tree: Tree) -> Tree:
        """Return the backend's answer, its large arrays counted."""
        tree = self._backend.detach(tree)
        for leaf in leaves(tree):
            if leaf.numel() == WEIGHTS:
                self._counter.take(leaf)
        return tree
