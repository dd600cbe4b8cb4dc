"""The trained weights as a function of λ that one differentiates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bilevel_core.abstract import Dynamics, Engine
from bilevel_core.engines.reverse import Reverse
from bilevel_core.engines.unrolled import Unrolled
from bilevel_core.flow import parts
from bilevel_core.problem import Problem
from bilevel_core.results import Solution, raise_if_failed
from bilevel_core.types import Array, Tree
from bilevel_core.validation import check_maps, checked_instance

__all__ = ["outer_objective", "solve_inner"]

REVERSE = Reverse()


def solve_inner(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    data: Any = None,
    *,
    steps: int,
    engine: Engine = REVERSE,
    start: Tree | None = None,
) -> Tree:
    """Return w_T(λ), which the framework differentiates in λ, and in the start, by the engine.

    In PyTorch it is a node of autograd's graph: `backward()` reaches the parameters of modules,
    through whatever computed λ, and `torch.func` differentiates and maps it. In JAX it is a
    function with a rule of its own, for `grad`, `jit`, `vmap` and `lax.scan`. `Unrolled` is the
    framework's own code instead, and the one engine that can be differentiated more than once.

    Args:
        problem: Φ_0 and the inner objective; the outer one is evaluated once, in a check.
        dynamics: one step of the inner optimiser.
        lam: λ, a floating-point array or a tree of them, such as `dict(net.named_parameters())`.
        data: what the problem's functions have as their last argument; None where they have none.
            It has no derivative.
        steps: T ≥ 0.
        engine: how it is differentiated.
        start: w_0 in place of Φ_0(λ), such as the last w_T (a warm start).

    Returns:
        w_T, a tree like w_0.

    Raises:
        ValueError, TypeError, DivergenceError: as for `hypergradient`; and ValueError where an
            objective captures a tensor that requires a gradient, which would be lost.
        ConvergenceError: on the way back, as for `hypergradient`.

    Cost: T steps; on the way back what the engine says.

    Example:
        >>> import torch
        >>> from bilevel_core import GradientDescent
        >>> problem = Problem(
        ...     inner=lambda w, lam, data: 0.5 * ((w - lam * data) ** 2).sum(),
        ...     outer=lambda w, lam, data: 0.5 * (w**2).sum(),
        ...     init=lambda lam, data: torch.zeros_like(data),
        ... )
        >>> lam = torch.tensor(2.0, requires_grad=True)
        >>> w = solve_inner(problem, GradientDescent(step_size=0.5), lam, torch.ones(1), steps=1)
        >>> (3 * w).sum().backward()
        >>> lam.grad
        tensor(1.5000)
    """
    instance = checked_instance(problem, dynamics, lam, data, start, steps)
    backend = instance.backend
    if isinstance(engine, Unrolled):
        check_maps(instance, engine)
        return dynamics.params(engine.differentiable_state(instance))

    def run(lam: Tree, start: Tree, data: Any, keep: bool) -> tuple[Tree, Tree]:
        here = replace(instance, lam=lam, start=start, data=data)
        with backend.values_only():
            check_maps(here, engine if keep else None)
            found = engine.run(here, keep=keep)
        raise_if_failed(found.result, steps)
        return dynamics.params(found.state), (found.state, found.memory)

    def pull(lam: Tree, start: Tree, data: Any, memory: Tree, cotangent: Tree) -> tuple[Tree, Tree]:
        here = replace(instance, lam=lam, start=start, data=data)
        state, kept = memory
        with backend.values_only():
            found = engine.pull(here, Solution(state=state, memory=kept), cotangent)
        raise_if_failed(found.result, steps)
        return found.lam, found.start

    def probe(lam: Tree, start: Tree, data: Any) -> Tree:
        return parts(replace(instance, lam=lam, start=start, data=data))

    return backend.differentiable(run, pull, probe, instance.lam, instance.start, data)


def outer_objective(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    data: Any = None,
    *,
    steps: int,
    engine: Engine = REVERSE,
    start: Tree | None = None,
) -> Array:
    """Return f_T(λ) = E(w_T(λ), λ), a scalar that the framework differentiates by the engine.

    Arguments, errors and cost are those of `solve_inner`, and E once.

    Example:
        >>> import torch
        >>> from bilevel_core import GradientDescent
        >>> problem = Problem(
        ...     inner=lambda w, lam: 0.5 * (w - lam) ** 2,
        ...     outer=lambda w, lam: 0.5 * w**2,
        ...     init=torch.zeros_like,
        ... )
        >>> lam = torch.tensor(2.0, requires_grad=True)
        >>> outer_objective(problem, GradientDescent(step_size=0.5), lam, steps=1).backward()
        >>> lam.grad
        tensor(0.5000)
    """
    w = solve_inner(problem, dynamics, lam, data, steps=steps, engine=engine, start=start)
    return problem.outer(w, lam) if data is None else problem.outer(w, lam, data)
