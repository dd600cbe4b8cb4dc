"""f_T and its gradient in one checked call."""

from __future__ import annotations

from typing import Any

from bilevel_core.abstract import Dynamics, Engine
from bilevel_core.arrays import norm
from bilevel_core.engines.reverse import Reverse
from bilevel_core.flow import Instance, Outer, constant
from bilevel_core.problem import Problem
from bilevel_core.results import (
    Code,
    DivergenceError,
    Hypergradient,
    Pulled,
    Solution,
    raise_if_failed,
)
from bilevel_core.tree import add, named_leaves
from bilevel_core.types import Tree
from bilevel_core.validation import check_maps, checked_instance, refuse_unused

__all__ = ["checked_run", "hypergradient", "run_engine", "value_and_gradient"]

REVERSE = Reverse()


def hypergradient(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    data: Any = None,
    *,
    steps: int,
    engine: Engine = REVERSE,
    start: Tree | None = None,
) -> Hypergradient:
    """Return f_T(λ) = E(w_T(λ), λ) and ∇f_T(λ), constants for any further differentiation.

    It is `outer_objective` and its gradient in one call, which also looks at the numbers: what is
    not finite, or a λ that nothing uses, is an error.

    Args:
        problem: Φ_0, the inner and the outer objective.
        dynamics: one step of the inner optimiser.
        lam: λ, a floating-point array or a tree of them, all of one framework.
        data: what the problem's functions have as their last argument; None where they have none.
        steps: T ≥ 0, inner steps; 0 gives the derivative through Φ_0 alone.
        engine: how w_T is differentiated.
        start: w_0 in place of Φ_0(λ), such as the last w_T (a warm start), a constant.

    Raises:
        TypeError: λ, w_0 or an objective is not a floating-point array of one framework, or a leaf
            of the dynamics' state no array of it.
        ValueError: T < 0, an objective is not a scalar, the dynamics change w's shape or write
            into their arguments, or a leaf is a frozen parameter.
        ValueError: an objective or the dynamics draw at random or keep state: repeated, they are
            others. `Unrolled` and `Direct`, which repeat nothing, accept that in PyTorch; f_T and
            ∇f_T are then those of the run that was drawn.
        ValueError: an operation has no derivative of the kind that the engine needs.
        ValueError: nothing uses a leaf of λ.
        DivergenceError: the inner run, f_T or its gradient is not finite or grows without bound.
        ConvergenceError: the implicit engine found w_T not stationary, or its system not solved.

    Cost: the engine's, plus some inner steps and the objectives for the checks, the first time.

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
    instance = checked_run(problem, dynamics, lam, data, steps=steps, engine=engine, start=start)
    return run_engine(engine, instance)


def checked_run(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    data: Any = None,
    *,
    steps: int,
    engine: Engine,
    start: Tree | None = None,
) -> Instance:
    """Return the run, checked and with no derivatives attached."""
    instance = constant(checked_instance(problem, dynamics, lam, data, start, steps))
    check_maps(instance, engine)
    return instance


def run_engine(engine: Engine, instance: Instance) -> Hypergradient:
    """Call an engine on a checked run and raise what `hypergradient` raises where it failed."""
    computed = value_and_gradient(engine, instance)
    backend, steps = instance.backend, instance.steps
    if not backend.is_concrete((computed.value, computed.grad)):
        return computed
    raise_if_failed(computed.result, steps)
    for what, tree in (("f_T", computed.value), ("the hypergradient", computed.grad)):
        for path, leaf in named_leaves(tree, what):
            if not norm(leaf, backend) < float("inf"):
                raise DivergenceError(
                    f"{path} is not finite after {steps} inner steps, although the inner run is: "
                    "look for a division by zero, a root or a logarithm of zero in the objectives, "
                    "or an epsilon that is 0 in this precision"
                )
    refuse_unused(instance, computed.grad)
    return computed


def value_and_gradient(engine: Engine, instance: Instance) -> Hypergradient:
    """Return f_T and ∇f_T = ∇_λ E + (∂w_T/∂λ)ᵀ ∇_w E; failure is a value."""
    backend = instance.backend
    with backend.values_only():
        found = engine.run(instance, keep=True)
        w = instance.flow.dynamics.params(found.state)
        value, pull_back = backend.vjp(
            Outer(instance.flow), w, instance.lam, fixed=(instance.data,)
        )
        towards_w, direct = backend.detach(pull_back(backend.namespace.ones_like(value)))
        pulled = _pull_back(engine, instance, found, towards_w)
        grad = backend.detach(add(direct, pulled.lam))
    good = found.result.code in (Code.SUCCESS, Code.UNCHECKED)
    return Hypergradient(
        value=backend.detach(value),
        grad=grad,
        state=found.state,
        result=pulled.result if good and pulled.result.code is not Code.SUCCESS else found.result,
        guess=pulled.guess,
    )


def _pull_back(engine: Engine, instance: Instance, found: Solution, cotangent: Tree) -> Pulled:
    """Pull back, or return λ where the run failed: its derivative means nothing."""
    if found.result.code in (Code.SUCCESS, Code.UNCHECKED):
        return engine.pull(instance, found, cotangent)
    return Pulled(lam=instance.lam)
