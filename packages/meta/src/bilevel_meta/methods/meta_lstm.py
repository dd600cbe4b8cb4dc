"""Meta-LSTM: the step of the inner loop is a cell of an LSTM, whose state is w."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bilevel_core import Gradient
from bilevel_meta.adaptation import Weights
from bilevel_meta.coordinatewise import flat, lstm_cell, preprocessed, unflat
from bilevel_meta.diet import Diet
from bilevel_meta.methods.maml import Maml

__all__ = ["Gates", "MetaLstm", "MetaLstmSteps"]

P = 10.0
"""Of the preprocessing of gradients and losses."""


@final
class Gates(nn.Module):
    """What the steps share: an LSTM on gradient and loss, a gate that forgets, one that lets in.

    At first the forget gate is near 1 and the input gate small, so that a step is one of gradient
    descent.

    Args:
        hidden: size of the LSTM's output.
        step_size: of that descent, where the input gate begins; between 0 and 1. The paper's is
            between 0.007 and 0.018.

    Raises:
        ValueError: a step size that no gate can have.
    """

    def __init__(self, hidden: int = 20, step_size: float = 0.01) -> None:
        super().__init__()
        if not 0 < step_size < 1:
            raise ValueError(f"step_size={step_size}: a gate begins between 0 and 1: choose such")
        self.weight = nn.Parameter(torch.empty(4 * hidden, 4 + hidden).uniform_(-0.01, 0.01))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        self.forget = nn.Parameter(torch.empty(hidden + 2).uniform_(-0.01, 0.01))
        self.admit = nn.Parameter(torch.empty(hidden + 2).uniform_(-0.01, 0.01))
        self.forget_bias = nn.Parameter(torch.empty(()).uniform_(4, 5))
        self.admit_bias = nn.Parameter(torch.tensor(math.log(step_size / (1 - step_size))))


@final
@dataclass(frozen=True)
class MetaLstmSteps:
    """w_t = f_t ∘ w_{t-1} - i_t ∘ ∇L(w_{t-1}), as `Dynamics`; gradient and loss are constants.

    f_t = σ(⟨W_F, [h_t, w_{t-1}, f̂_{t-1}]⟩ + b_F), f̂ what stands in σ, and i_t likewise; h_t is the
    output of an LSTM on the preprocessed gradient and loss. Every number of w has a state of its
    own and shares all weights.

    Source: Optimization as a Model for Few-Shot Learning (Ravi, Larochelle, 2017), Eqs. 2 and 3.
    """

    def init(self, w: Weights, lam: dict[str, Weights]) -> dict[str, Any]:
        """Return w, and zeros for the rest of the state."""
        numbers = flat(w)
        hidden = len(lam["learned"]["bias"]) // 4
        zeros = numbers.new_zeros(len(numbers), hidden)
        gate = 0 * numbers
        return {"w": w, "h": zeros, "c": zeros, "forget": gate, "admit": gate}

    def step(
        self, gradient: Gradient, state: dict[str, Any], lam: dict[str, Weights], t: int
    ) -> dict[str, Any]:
        """Return the state after a step."""
        del t
        shared = lam["learned"]
        loss, slopes = gradient.held().with_value(state["w"])
        w, g = flat(state["w"]), flat(slopes)
        x = torch.cat((preprocessed(g, P), preprocessed(loss, P).expand(len(g), 2)), dim=-1)
        h, c = lstm_cell(x, state["h"], state["c"], shared["weight"], shared["bias"])

        def gate(name: str) -> Tensor:
            seen = torch.cat((h, w.unsqueeze(-1), state[name].unsqueeze(-1)), dim=-1)
            return seen @ shared[name] + shared[f"{name}_bias"]

        forget, admit = gate("forget"), gate("admit")
        w = forget.sigmoid() * w - admit.sigmoid() * g
        after = {"w": unflat(w, state["w"]), "h": h, "c": c, "forget": forget, "admit": admit}
        return after

    def params(self, state: dict[str, Any]) -> Weights:
        """Return w."""
        weights: Weights = state["w"]
        return weights


@final
class MetaLstm(Maml):
    """Weights by T steps of a learned rule from a learned start, both of them λ.

    The offsets of the normalisation are part of w, as in the paper. Its running statistics, which
    are gathered on an episode's support images, are `norm=support` here.

    Args:
        backbone: h.
        steps: T.
        hidden: size of the LSTM's output.
        step_size: where the input gate begins.
        settings: as of `Maml`.

    Cost: of a loss, (Q + T S) / (Q + S) passes, as no second derivative is taken, and T steps of
    the rule on every number of w.

    Source: Optimization as a Model for Few-Shot Learning (Ravi, Larochelle, 2017).
    """

    diet = Diet(way=5, shot=1, query=15, episodes=1)

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        steps: int = 12,
        hidden: int = 20,
        step_size: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(
            backbone,
            steps=steps,
            dynamics=MetaLstmSteps(),
            learned=Gates(hidden, step_size),
            offsets_move=True,
            **settings,
        )
