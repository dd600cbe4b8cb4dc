"""What an engine returns, and how a failed inner run is told from a good one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, final

from bilevel_core.abstract import Array, Tree
from bilevel_core.tree import map_leaves

if TYPE_CHECKING:
    from bilevel_core.flow import Flow

__all__ = ["Code", "ConvergenceError", "DivergenceError", "Hypergradient", "Result", "diagnose"]


class Code(Enum):
    """How an inner run and, in the implicit engine, what rests on its limit ended.

    The value is the remedy. `UNCHECKED` is no failure: see `Backend.is_concrete`.
    """

    SUCCESS = ""
    UNCHECKED = "look for NaN in the value yourself: within jit or vmap no number can be looked at"
    NOT_FINITE = "lower the inner step size, or scale the inner objective down"
    GROWING = "lower the inner step size below 2 / (largest curvature of the inner objective)"
    NOT_STATIONARY = (
        "take more steps T, or an engine of f_T such as Reverse; the limit of a projected or "
        "custom map need not be a stationary point of L, and then only such an engine will do"
    )
    NOT_SOLVED = (
        "take more solver steps or a smaller solver step size, or accept what the solver returns "
        "with tolerance=None"
    )


@final
@dataclass(frozen=True, kw_only=True)
class Result:
    """The code of a run and, when it failed, what shows it.

    Attributes:
        code: how the run ended.
        step: the first step that shows it, where the inner run diverged.
        measured: for `NOT_STATIONARY`, ‖∇_w L(w_T)‖ / ‖∇_w L(w_0)‖; for `NOT_SOLVED`, the relative
            residual of the linear system.
    """

    code: Code = Code.SUCCESS
    step: int | None = None
    measured: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Hypergradient:
    """f_T(λ) and its gradient.

    Attributes:
        value: f_T(λ), a scalar array.
        grad: ∇f_T(λ), a tree like λ.
        state: s_T, the dynamics' last state; `dynamics.params(state)` is w_T.
        result: whether the run went well.
    """

    value: Array
    grad: Tree
    state: Tree
    result: Result


class DivergenceError(ArithmeticError):
    """The inner run diverged, so that neither f_T nor its gradient means anything."""


class ConvergenceError(ArithmeticError):
    """The inner run or the linear solver stopped short of the limit that is differentiated."""


def diagnose(
    flow: Flow, lam: Tree, steps: int, head: Sequence[Tree], tail: Sequence[Tree]
) -> Result:
    """Judge an inner run of T = `steps` from its ends: finite, and not growing without bound.

    A run counts as growing when its last step is 1/ε times longer than its first one, and than the
    same step taken from s_0, which a step size that warms up lengthens as well (ε: machine
    epsilon): nothing of where it started is left in its digits, so its derivative is noise. A run
    on the way to divergence passes this bound long before it overflows.

    Args:
        flow: the maps.
        lam: λ.
        steps: T.
        head: s_0, and s_1 if T > 0.
        tail: s_{T-1} if T > 0, and s_T.

    Cost: three norms for a good run, and a step where its last one is long. A failed one is run
    again, to find the step.
    """
    if not flow.backend.is_concrete((head, tail)):
        return Result(code=Code.UNCHECKED)
    norm = flow.backend.norm
    limit = 1.0 / flow.backend.epsilon(head[0])

    def stride(pair: Sequence[Tree]) -> float:
        return norm(map_leaves(lambda a, b: a - b, pair[1], pair[0])) if len(pair) > 1 else 0.0

    def from_start(t: int) -> float:
        return stride((head[0], flow.backend.detach(flow.step(head[0], lam, t))))

    first = stride(head)

    def failure(pair: Sequence[Tree], t: int) -> Code:
        if not math.isfinite(norm(pair[-1])):
            return Code.NOT_FINITE
        if t > 1 and 0 < first * limit < stride(pair) and from_start(t) * limit < stride(pair):
            return Code.GROWING
        return Code.SUCCESS

    if failure(tail, steps) is Code.SUCCESS:
        return Result()
    before, state = head[0], head[0]
    for t in range(steps + 1):
        if t > 0:
            before, state = state, flow.backend.detach(flow.step(state, lam, t))
        if (code := failure((before, state), t)) is not Code.SUCCESS:
            return Result(code=code, step=t)
    # The run passed when repeated: its steps are not a function of their arguments alone.
    return Result(code=failure(tail, steps), step=steps)
