"""What engines and entry points return, and what they raise."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, final

from bilevel_core.types import Array, Tree

__all__ = [
    "Code",
    "ConvergenceError",
    "DivergenceError",
    "Hypergradient",
    "Pulled",
    "Result",
    "Solution",
    "raise_if_failed",
]


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
    NOT_DEFINED = (
        "look there for a root or a norm at 0, a division of 0 by 0, the logarithm of 0, or an "
        "epsilon that is 0 in this precision; no step size will mend it"
    )
    NOT_REPEATED = (
        "draw or shuffle what step t needs in `batches`, from a generator seeded with t, and keep "
        "no state in the objectives (running averages of batch norm, vectors of spectral norm)"
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
            residual of the linear system; for `NOT_REPEATED`, how far a state was from itself.
    """

    code: Code = Code.SUCCESS
    step: int | None = None
    measured: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Solution:
    """The end of an inner run.

    Attributes:
        state: s_T, the dynamics' last state.
        memory: a tree of arrays that `pull` needs; () where it is not to be differentiated.
        result: whether the run went well.
    """

    state: Tree
    memory: Any = ()
    result: Result = field(default_factory=Result)


@final
@dataclass(frozen=True, kw_only=True)
class Pulled:
    """The cotangent of w_T, pulled back.

    Attributes:
        lam: its product with ∂w_T/∂λ, a tree like λ.
        start: its product with ∂w_T/∂w_0, a tree like the start; () where none was given.
        result: whether it could be pulled back, and the run repeated.
        guess: the solution of the implicit engine's linear system, else None.
    """

    lam: Tree
    start: Tree = ()
    result: Result = field(default_factory=Result)
    guess: Tree | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Hypergradient:
    """f_T(λ) and its gradient.

    Attributes:
        value: f_T(λ), a scalar array.
        grad: ∇f_T(λ), a tree like λ.
        state: s_T, the dynamics' last state; `dynamics.params(state)` is w_T.
        result: whether the run went well.
        guess: the solution of the implicit engine's linear system, else None.
    """

    value: Array
    grad: Tree
    state: Tree
    result: Result
    guess: Tree | None = None


class DivergenceError(ArithmeticError):
    """The inner run diverged, so that neither f_T nor its gradient means anything."""


class ConvergenceError(ArithmeticError):
    """The inner run or the linear solver stopped short of the limit that is differentiated."""


def raise_if_failed(result: Result, steps: int) -> None:
    """Raise what the result of a run of T = `steps` means, unless it went well."""
    remedy, measured = result.code.value, result.measured
    match result.code:
        case Code.SUCCESS | Code.UNCHECKED:
            return
        case Code.NOT_STATIONARY:
            raise ConvergenceError(
                f"w_T is not a stationary point of the inner objective after {steps} inner steps: "
                f"its gradient there is {measured:.3g} times that at w_0; {remedy}"
            )
        case Code.NOT_SOLVED:
            raise ConvergenceError(
                f"the linear system at w_T (T = {steps}) is not solved: relative residual "
                f"{measured:.3g}; {remedy}"
            )
        case Code.NOT_REPEATED:
            raise ValueError(
                f"a step that was run again led {measured:.3g} away from where it had: batches, "
                f"dynamics or objectives are not functions of their arguments alone; {remedy}"
            )
        case Code.NOT_DEFINED:
            raise DivergenceError(
                f"the inner run is not finite at step {result.step} of T = {steps}, because the "
                f"gradient of the inner objective is not at the state before it, which is; {remedy}"
            )
    what = "is not finite" if result.code is Code.NOT_FINITE else "grows without bound"
    raise DivergenceError(f"the inner run {what} at step {result.step} of T = {steps}: {remedy}")
