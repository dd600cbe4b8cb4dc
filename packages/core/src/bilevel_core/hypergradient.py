"""The entry point: the input is checked, the engine called, and what failed is raised."""

from __future__ import annotations

from bilevel_core.abstract import Backend, Dynamics, Engine, Tree
from bilevel_core.engines.direct import Direct
from bilevel_core.engines.reverse import Reverse
from bilevel_core.engines.unrolled import Unrolled
from bilevel_core.flow import Flow, run_ends
from bilevel_core.problem import Problem
from bilevel_core.results import (
    Code,
    ConvergenceError,
    DivergenceError,
    Hypergradient,
    Result,
    diagnose,
)
from bilevel_core.tree import named_leaves
from bilevel_core.validation import checked_flow, refuse_unused

__all__ = ["ONCE", "hypergradient", "run_engine", "solve_inner"]

REVERSE = Reverse()
ONCE = (Unrolled, Direct)
"""Engines that take every step once, so that it may draw at random (dropout)."""


def hypergradient(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    *,
    steps: int,
    engine: Engine = REVERSE,
) -> Hypergradient:
    """Return f_T(λ) = E(w_T(λ), λ) and ∇f_T(λ), constants for any further differentiation.

    Args:
        problem: Φ_0, the inner and the outer objective.
        dynamics: one step of the inner optimiser.
        lam: λ, a floating-point array or a tree of them, all of one framework.
        steps: T ≥ 0, inner steps; 0 gives the derivative through Φ_0 alone.
        engine: how the gradient is computed.

    Raises:
        TypeError: λ, w_0, a leaf of the dynamics' state or an objective is not a floating-point
            array of one framework.
        ValueError: T < 0, an objective is not a scalar, or the dynamics change w's shape or write
            into their arguments.
        ValueError: the inner objective or the dynamics draw at random: repeated, they are others.
            `Unrolled` and `Direct`, which repeat nothing, accept that in PyTorch; f_T and ∇f_T are
            then those of the run that was drawn.
        ValueError: nothing uses a leaf of λ.
        DivergenceError: the inner run, f_T or its gradient is not finite or grows without bound.
        ConvergenceError: the implicit engine found w_T not stationary, or its system not solved.

    Cost: the engine's, plus three inner steps and the objectives for the checks, the first time.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 5 and 6.

    Example:
        >>> import torch
        >>> problem = Problem(
        ...     inner=lambda w, lam: 0.5 * (w - lam) ** 2,
        ...     outer=lambda w, lam: 0.5 * w**2,
        ...     init=torch.zeros_like,
        ... )
        >>> lam = torch.tensor(2.0, dtype=torch.float64)
        >>> hypergradient(problem, GradientDescent(step_size=0.5), lam, steps=1).grad
        tensor(0.5000, dtype=torch.float64)
    """
    flow, lam = checked_flow(problem, dynamics, lam, steps, once=isinstance(engine, ONCE))
    return run_engine(engine, flow, lam, steps)


def run_engine(engine: Engine, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
    """Call an engine on checked input and raise what `hypergradient` raises where it failed."""
    with flow.backend.values_only():
        computed = engine(flow, lam, steps)
    if not flow.backend.is_concrete((computed.value, computed.grad)):
        return computed
    _raise_if_failed(computed.result, steps)
    for what, tree in (("f_T", computed.value), ("the hypergradient", computed.grad)):
        for path, leaf in named_leaves(tree, what):
            if not _is_finite(flow.backend, leaf):
                raise DivergenceError(
                    f"{path} is not finite after {steps} inner steps, although the inner run is: "
                    "look for a division by zero or a logarithm of zero in the objectives"
                )
    refuse_unused(flow, lam, computed.grad, steps)
    return computed


def solve_inner(problem: Problem, dynamics: Dynamics, lam: Tree, *, steps: int) -> Tree:
    """Return w_T(λ), the parameters after T inner steps, with no derivatives.

    Arguments and errors are those of `hypergradient`, and in PyTorch steps may draw at random.

    Cost: T steps; memory of a few states.
    """
    flow, lam = checked_flow(problem, dynamics, lam, steps, once=True)
    with flow.backend.values_only():
        head, tail = run_ends(flow, lam, steps)
        result = diagnose(flow, lam, steps, head, tail)
    _raise_if_failed(result, steps)
    return dynamics.params(tail[-1])


def _is_finite(backend: Backend, leaf: Tree) -> bool:
    return backend.norm(leaf) < float("inf")


def _raise_if_failed(result: Result, steps: int) -> None:
    remedy = result.code.value
    match result.code:
        case Code.SUCCESS | Code.UNCHECKED:
            return
        case Code.NOT_STATIONARY:
            raise ConvergenceError(
                f"w_T is not a stationary point of the inner objective after {steps} inner steps: "
                f"its gradient there is {result.measured:.3g} times that at w_0; {remedy}"
            )
        case Code.NOT_SOLVED:
            raise ConvergenceError(
                f"the linear system at w_T (T = {steps}) is not solved: relative residual "
                f"{result.measured:.3g}; {remedy}"
            )
    what = "is not finite" if result.code is Code.NOT_FINITE else "grows without bound"
    raise DivergenceError(f"the inner run {what} at step {result.step} of T = {steps}: {remedy}")
