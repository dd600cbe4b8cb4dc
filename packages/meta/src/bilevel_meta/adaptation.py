"""Inner loops that move the weights of any network, with all that is learned about them.

    λ = {"start": weights that move, "rest": weights that do not, "sizes": step sizes,
         "learned": the weights of a learned optimiser}

    w_0 = λ.start,   w_t = w_{t-1} - η_t ∇L(w_{t-1}),
    L(w) = ℓ(network(x; w), y) + (ρ/2) ‖w - λ.start‖²

One `Adaptation` says how; `AdaptedNetwork` is λ with it, for one task at a time. How several tasks
are taken together is the caller's: one after the other, or under `torch.vmap`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias, cast, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bilevel_core import (
    Dynamics,
    Engine,
    FirstOrder,
    GradientDescent,
    Implicit,
    Problem,
    Unrolled,
    solve_inner,
)
from bilevel_meta.each_task import each_task, pays_to_vectorise
from bilevel_models import OffsetNorm2d, differentiable_twice

__all__ = ["Adaptation", "AdaptedNetwork", "StepSizes", "Weights", "warn_beyond"]

Weights: TypeAlias = dict[str, Tensor]
Data: TypeAlias = dict[str, Any]
"""{"x": what the network takes, a tensor or a tuple of arguments, "y": targets}."""


class StepSizes(StrEnum):
    """How many step sizes there are.

    FIXED: one number, not learned.
    LEAF_AND_STEP: one a tensor of w and a step, learned; beyond the last step, that of the last.
    COORDINATE: one a number of w, learned.
    """

    FIXED = "fixed"
    LEAF_AND_STEP = "leaf and step"
    COORDINATE = "coordinate"


@final
@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How weights are found from their start.

    Attributes:
        steps: T.
        step_size: η, or where all η start.
        step_sizes: how many there are.
        first_order: take ∇L as a constant when differentiating: ∇f is then ∇E(w_T).
        moves: says of a weight, by its name, whether it is in w.
        offsets_move: whether offsets of normalisation layers are in w too, which are otherwise
            learned across tasks alone.
        proximal: ρ. With it `Implicit` differentiates the inner solution, path and start forgotten;
            without, `Implicit` and `Exact` would give zero, as λ enters by the start alone.
        engine: how the run is differentiated. `Truncated` and `Direct` give zero for the same
            reason, and are refused.
        dynamics: steps of another kind, in place of gradient descent with these sizes.
        minibatch: so many examples a step, in an order that each step number draws anew; None takes
            all of them.

    Raises:
        ValueError: T < 0, a step size that is not positive, or an engine that gives zero.
    """

    steps: int = 5
    step_size: float = 0.1
    step_sizes: StepSizes = StepSizes.FIXED
    first_order: bool = False
    moves: Callable[[str], bool] = field(default=lambda _: True)
    offsets_move: bool = False
    proximal: float = 0.0
    engine: Engine = field(default_factory=Unrolled)
    dynamics: Dynamics | None = None
    minibatch: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, found {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"step_size must be positive, found {self.step_size}")
        name = type(self.engine).__name__
        blind = isinstance(self.engine, Implicit) or name == "Exact"
        if name in ("Truncated", "Direct") or (blind and not self.proximal):
            remedy = "give a proximal term" if blind else "take Unrolled with first_order"
            raise ValueError(
                f"{name} forgets the start of the inner run, and λ enters by it alone: the "
                f"hypergradient would be zero: {remedy}, or another engine"
            )


class AdaptedNetwork(nn.Module):
    """λ: the weights of a network, which tasks move for themselves, and the step sizes of that.

    Args:
        network: any module whose output is a function of its weights and its input.
        loss: ℓ, a scalar of outputs and targets; differentiable twice.
        adaptation: how tasks move the weights.
        learned: a module whose parameters the adaptation's dynamics read from λ.

    Raises:
        ValueError: no weight moves.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        adaptation: Adaptation,
        learned: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.adaptation = network, loss, adaptation
        self.learned = learned
        self.offsets = [
            f"{path}.bias" for path, m in network.named_modules() if isinstance(m, OffsetNorm2d)
        ]
        self.moving = [
            name
            for name, _ in network.named_parameters()
            if adaptation.moves(name) and (adaptation.offsets_move or name not in self.offsets)
        ]
        if not self.moving:
            raise ValueError("no weight of the network moves: let `moves` accept one")
        self.sizes = nn.ParameterList(self._first_sizes())
        # The same objects at every call, so that core checks them once.
        batches = self.batch if adaptation.minibatch else None
        self.problem = Problem(inner=self.inner, outer=self.inner, init=_start, batches=batches)
        dynamics = adaptation.dynamics or GradientDescent(step_size=self.size)
        self.dynamics = FirstOrder(dynamics) if adaptation.first_order else dynamics

    def _first_sizes(self) -> list[Tensor]:
        kind, eta = self.adaptation.step_sizes, self.adaptation.step_size
        if kind is StepSizes.FIXED:
            return []
        weights = dict(self.network.named_parameters())
        if kind is StepSizes.COORDINATE:
            return [torch.full_like(weights[name], eta) for name in self.moving]
        return [torch.full((max(1, self.adaptation.steps),), eta) for _ in self.moving]

    def lam(self) -> dict[str, Weights]:
        """Return λ as core takes it; its leaves are the parameters, or constants if frozen."""
        named = self.network.named_parameters()
        weights = {name: p if p.requires_grad else p.detach() for name, p in named}
        rest = {name: leaf for name, leaf in weights.items() if name not in self.moving}
        return {
            "start": {name: weights[name] for name in self.moving},
            "rest": rest,
            "sizes": dict(zip(self.moving, self.sizes, strict=False)),
            "learned": dict(self.learned.named_parameters()) if self.learned else {},
        }

    def size(self, lam: dict[str, Weights], t: int) -> float | Weights:
        """Return η_t, one number or a tree like w."""
        kind, sizes = self.adaptation.step_sizes, lam["sizes"]
        if kind is StepSizes.FIXED:
            return self.adaptation.step_size
        if kind is StepSizes.COORDINATE:
            return sizes
        return {name: eta[min(t, len(eta)) - 1] for name, eta in sizes.items()}

    def outputs(self, w: Weights, rest: Weights, x: Any) -> Tensor:
        """Return what the network makes of x with the weights w."""
        arguments = x if isinstance(x, tuple) else (x,)
        result: Tensor = functional_call(self.network, {**rest, **w}, arguments)
        return result

    def inner(self, w: Weights, lam: dict[str, Weights], data: Data) -> Tensor:
        """Return L(w)."""
        with differentiable_twice():
            value = self.loss(self.outputs(w, lam["rest"], data["x"]), data["y"])
        rho = self.adaptation.proximal
        if not rho:
            return value
        return value + rho / 2 * sum((w[k] - lam["start"][k]).square().sum() for k in w)

    def batch(self, t: int, data: Data) -> Data:
        """Return what step t sees of the data."""
        x, y = data["x"], data["y"]
        axis = y.ndim - 1  # examples come last, behind tasks that are taken together
        order = torch.randperm(y.shape[axis], generator=torch.Generator().manual_seed(t))
        chosen = order[: self.adaptation.minibatch].to(y.device)
        first = x[0] if isinstance(x, tuple) else x
        images = first.index_select(axis, chosen)
        return {
            "x": (images, *x[1:]) if isinstance(x, tuple) else images,
            "y": y.index_select(axis, chosen),
        }

    def solve(
        self, data: Data, *, steps: int | None = None, lam: dict[str, Weights] | None = None
    ) -> Weights:
        """Return w_T of one task, with its derivatives in λ.

        Args:
            data: the task's.
            steps: T; None takes the adaptation's.
            lam: another λ than the parameters.

        Raises:
            bilevel_core.DivergenceError: the run diverges.

        Cost: of `Unrolled`, three passes over the data a step; see the engine.
        """
        adaptation = self.adaptation
        steps = adaptation.steps if steps is None else steps
        lam, engine = self.lam() if lam is None else lam, adaptation.engine
        if not torch.is_grad_enabled():
            lam = _detached(lam)
        w: Weights = solve_inner(self.problem, self.dynamics, lam, data, steps=steps, engine=engine)
        return w

    def query_losses(
        self, x: Any, y: Tensor, x_query: Any, y_query: Tensor, *, steps: int | None = None
    ) -> Tensor:
        """Return ℓ on the query examples of each task at its w_T, (tasks,).

        Args:
            x: the tasks' support inputs, (tasks, n, …).
            y: their targets, (tasks, n, …).
            x_query: query inputs, (tasks, m, …).
            y_query: their targets, (tasks, m, …).
            steps: as of `solve`.
        """
        rest, trained = self.lam()["rest"], self.adaptation.steps
        if self.adaptation.step_sizes is not StepSizes.FIXED and (steps or 0) > trained:
            warn_beyond(trained, steps)

        def loss(x: Tensor, y: Tensor, x_query: Tensor, y_query: Tensor) -> Tensor:
            w = self.solve({"x": x, "y": y}, steps=steps)
            return self.loss(self.outputs(w, rest, x_query), y_query)

        vectorise = pays_to_vectorise(self.network) and not self.adaptation.minibatch
        found = each_task(loss, x, y, x_query, y_query, vectorise=vectorise)
        return cast("Tensor", found)


def warn_beyond(trained: int, steps: int | None) -> None:
    """Warn that step sizes were learned for fewer steps than are asked for."""
    warnings.warn(
        f"T = {steps} with step sizes that were learned for T = {trained}: they may diverge beyond "
        f"it, as those of Meta-SGD do on sinusoids: take at most {trained} steps",
        stacklevel=3,
    )


def _start(lam: dict[str, Weights], data: Data) -> Weights:
    del data
    return lam["start"]


def _detached(lam: dict[str, Weights]) -> dict[str, Weights]:
    return {part: {k: v.detach() for k, v in leaves.items()} for part, leaves in lam.items()}
