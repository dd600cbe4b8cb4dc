"""A learned optimiser: the step is the output of an LSTM that sees the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bilevel_core import Gradient, Problem, Unrolled, solve_inner
from bilevel_meta.adaptation import Weights
from bilevel_meta.coordinatewise import flat, lstm_cell, preprocessed, unflat
from bilevel_meta.diet import Diet
from bilevel_meta.methods.maml import Maml

__all__ = ["CoordinatewiseLstm", "LearnedOptimizer", "LstmSteps", "unrolled_losses"]


@final
class CoordinatewiseLstm(nn.Module):
    """What the steps share: two layers of LSTM and a linear output.

    Args:
        hidden: size of each layer.
        scale: factor on the output.
        p: of the preprocessing; None gives the gradient itself to the LSTM.
    """

    def __init__(self, hidden: int = 20, *, scale: float = 0.01, p: float | None = 10.0) -> None:
        super().__init__()
        inputs = 1 if p is None else 2
        bound = hidden**-0.5
        for layer, size in (("first", inputs), ("second", hidden)):
            shape = 4 * hidden, size + hidden
            weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
            self.register_parameter(f"{layer}_weight", weight)
            self.register_parameter(f"{layer}_bias", nn.Parameter(torch.zeros(4 * hidden)))
        self.output = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        self.steps = LstmSteps(scale=scale, p=p)


@final
@dataclass(frozen=True, kw_only=True)
class LstmSteps:
    """w_t = w_{t-1} + s ⟨v, LSTM(∇L(w_{t-1}))⟩, as `Dynamics`; the gradient is a constant.

    Attributes:
        scale: s.
        p: of the preprocessing.

    Source: Learning to learn by gradient descent by gradient descent (Andrychowicz et al., 2016),
    section 2.1 and Eq. 3.
    """

    scale: float
    p: float | None

    def init(self, w: Weights, lam: dict[str, Weights]) -> dict[str, Any]:
        """Return w, and zeros for the state of the LSTM."""
        numbers = flat(w)
        zeros = numbers.new_zeros(len(numbers), len(lam["learned"]["output"]))
        return {"w": w, "lstm": [zeros, zeros, zeros, zeros]}

    def step(
        self, gradient: Gradient, state: dict[str, Any], lam: dict[str, Weights], t: int
    ) -> dict[str, Any]:
        """Return the state after a step."""
        del t
        shared, (h, c, h2, c2) = lam["learned"], state["lstm"]
        g = flat(gradient.held()(state["w"]))
        x = g.unsqueeze(-1) if self.p is None else preprocessed(g, self.p)
        h, c = lstm_cell(x, h, c, shared["first_weight"], shared["first_bias"])
        h2, c2 = lstm_cell(h, h2, c2, shared["second_weight"], shared["second_bias"])
        moved = flat(state["w"]) + self.scale * (h2 @ shared["output"])
        return {"w": unflat(moved, state["w"]), "lstm": [h, c, h2, c2]}

    def params(self, state: dict[str, Any]) -> Weights:
        """Return w."""
        weights: Weights = state["w"]
        return weights


def unrolled_losses(
    shared: CoordinatewiseLstm,
    objective: Callable[[Weights], Tensor],
    w: Weights,
    *,
    steps: int,
    window: int = 20,
) -> Iterator[Tensor]:
    """Yield Σ f(w_t) over each window of the steps, to be back-propagated and stepped on.

    The run goes on from window to window, and no derivative passes from one to the next.

    Args:
        shared: the learned optimiser.
        objective: f.
        w: w_0.
        steps: T.
        window: steps a window.

    Source: Learning to learn by gradient descent by gradient descent (Andrychowicz et al., 2016),
    Eq. 3 with weights of one, and section 3.
    """
    carry = _Carry(shared.steps)
    problem = Problem(
        inner=lambda state, lam: objective(state["w"]),  # noqa: ARG005
        outer=lambda state, lam: objective(state["w"]),  # noqa: ARG005
        init=lambda lam: carry.base.init(w, lam),
    )
    state = problem.init({"learned": dict(shared.named_parameters())})
    for begin in range(0, steps, window):
        lam = {"learned": dict(shared.named_parameters())}
        losses = []
        for _ in range(min(window, steps - begin)):
            state = solve_inner(problem, carry, lam, steps=1, engine=Unrolled(), start=state)
            losses.append(objective(state["w"]))
        yield torch.stack(losses).sum()
        state = {"w": _detached(state["w"]), "lstm": [x.detach() for x in state["lstm"]]}


@final
@dataclass(frozen=True)
class _Carry:
    """The same steps with the whole state as what is solved for, so that runs can be continued."""

    base: LstmSteps

    def init(self, w: dict[str, Any], lam: dict[str, Weights]) -> dict[str, Any]:
        del lam
        return w

    def step(
        self, gradient: Gradient, state: dict[str, Any], lam: dict[str, Weights], t: int
    ) -> dict[str, Any]:
        return self.base.step(_OfWeights(gradient, state), state, lam, t)

    def params(self, state: dict[str, Any]) -> dict[str, Any]:
        return state


@final
@dataclass(frozen=True)
class _OfWeights:
    """The gradient in w of an objective of the state."""

    gradient: Gradient
    state: dict[str, Any]

    @property
    def data(self) -> Any:
        return self.gradient.data

    def __call__(self, w: Weights) -> Weights:
        return self.with_value(w)[1]

    def with_value(self, w: Weights) -> tuple[Tensor, Weights]:
        value, found = self.gradient.with_value({**self.state, "w": w})
        return value, found["w"]

    def held(self) -> _OfWeights:
        return _OfWeights(self.gradient.held(), self.state)


def _detached(w: Weights) -> Weights:
    return {name: leaf.detach() for name, leaf in w.items()}


@final
class LearnedOptimizer(Maml):
    """Few-shot learning with a learned optimiser: start and optimiser are λ, E the query loss.

    The paper's optimiser sees no query set and starts anywhere: that is `unrolled_losses`.

    Args:
        backbone: h.
        steps: T.
        hidden: size of each layer of the LSTM.
        scale: s.
        settings: as of `Maml`.

    Source: Learning to learn by gradient descent by gradient descent (Andrychowicz et al., 2016).
    """

    diet = Diet(way=5, shot=1, query=15, episodes=1)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        steps: int = 5,
        hidden: int = 20,
        scale: float = 0.1,
        **settings: Any,
    ) -> None:
        shared = CoordinatewiseLstm(hidden, scale=scale)
        super().__init__(backbone, steps=steps, dynamics=shared.steps, learned=shared, **settings)

    @property
    def number_by_number(self) -> bool:
        """Whether a step of a number of w sees no other: each has an LSTM state of its own."""
        return True
