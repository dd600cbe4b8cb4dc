"""What an engine returns, and how a failed inner run is told from a good one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import final

from bilevel_core.abstract import Array, Backend, Tree
from bilevel_core.tree import map_leaves

__all__ = ["Code", "DivergenceError", "Hypergradient", "Result", "diagnose"]


class Code(Enum):
    """How an inner run ended; the value is the remedy."""

    SUCCESS = ""
    NOT_FINITE = "lower the inner step size, or scale the inner objective down"
    GROWING = "lower the inner step size below 2 / (largest curvature of the inner objective)"


@final
@dataclass(frozen=True, kw_only=True)
class Result:
    """The code of an inner run and, when it failed, the first step that shows it."""

    code: Code = Code.SUCCESS
    step: int | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Hypergradient:
    """f_T(λ) and its gradient.

    Attributes:
        value: f_T(λ), a scalar array.
        grad: ∇f_T(λ), a tree like λ.
        state: s_T, the dynamics' last state; `dynamics.params(state)` is w_T.
        result: whether the inner run went well.
    """

    value: Array
    grad: Tree
    state: Tree
    result: Result


class DivergenceError(ArithmeticError):
    """The inner run diverged, so that neither f_T nor its gradient means anything."""


def diagnose(backend: Backend, states: list[Tree]) -> Result:
    """Judge a trajectory [s_0, …, s_T]: finite, and not growing without bound.

    A run counts as growing when its last step is 1/ε times longer than its first one (ε: machine
    epsilon): nothing of where it started is left in its digits, so its derivative is noise. A run
    on the way to divergence passes this bound long before it overflows.

    Cost: three norms for a good run; one a step for a failed one, to find the step.
    """
    limit = 1.0 / backend.epsilon(states[0])

    def stride(t: int) -> float:
        difference = map_leaves(lambda a, b: a - b, states[t], states[t - 1])
        return backend.norm(difference)

    def failure(t: int) -> Code:
        if not math.isfinite(backend.norm(states[t])):
            return Code.NOT_FINITE
        if t > 1 and 0 < first * limit < stride(t):
            return Code.GROWING
        return Code.SUCCESS

    last = len(states) - 1
    first = stride(1) if last > 0 else 0.0
    if failure(last) is Code.SUCCESS:
        return Result()
    step = next(t for t in range(last + 1) if failure(t) is not Code.SUCCESS)
    return Result(code=failure(step), step=step)
