"""The entry point: check the input once, choose the backend, call the engine, report."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from itertools import chain, compress
from typing import Any
from weakref import WeakKeyDictionary

from bilevel_core.abstract import Backend, Dynamics, Engine, Tree
from bilevel_core.backend import backend_of
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
from bilevel_core.tree import leaves, map_leaves, named_leaves

__all__ = [
    "ONCE",
    "checked_flow",
    "hypergradient",
    "refuse_unused",
    "run_engine",
    "solve_inner",
]

REVERSE = Reverse()
PARTS = ("init", "step", "params")
"""Of `Dynamics`."""
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


def checked_flow(
    problem: Problem, dynamics: Dynamics, lam: Tree, steps: int, *, once: bool = False
) -> tuple[Flow, Tree]:
    """Return the three maps and a detached λ, or raise what `hypergradient` says it raises.

    Where every step is taken `once`, it may draw at random, unless a loop is compiled.
    """
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, found {steps!r}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, found {steps}")
    _require_dynamics(dynamics)
    backend = backend_of(lam, "λ")
    _require_floating(backend, lam, "λ")
    flow = Flow(problem=problem, dynamics=dynamics, backend=backend)
    lam = backend.detach(lam)
    _check_once(flow, lam, steps, may_draw=once and not backend.compiles)
    return flow, lam


_CHECKED: WeakKeyDictionary[Problem, set[Hashable]] = WeakKeyDictionary()
"""What each problem was found good with, so that a loop does not pay for the same check again."""


def _check_once(flow: Flow, lam: Tree, steps: int, *, may_draw: bool) -> None:
    """Check the maps, unless they passed before with these dynamics and shapes."""
    shapes = tuple((path, flow.backend.signature(leaf)) for path, leaf in named_leaves(lam))
    key = (flow.dynamics, flow.backend, shapes, steps > 0, may_draw)
    passed = _passed(flow.problem, key)
    if passed is not None and key in passed:
        return
    with flow.backend.values_only():
        _check_maps(flow, lam, steps, may_draw=may_draw)
    if passed is not None and flow.backend.is_concrete(lam):
        passed.add(key)


def _passed(problem: Problem, key: Hashable) -> set[Hashable] | None:
    """Return what a problem was found good with, or None where there is no remembering it."""
    try:
        hash(key)
        return _CHECKED.setdefault(problem, set())
    except TypeError:  # something of the user's own that cannot be hashed
        return None


def _check_maps(flow: Flow, lam: Tree, steps: int, *, may_draw: bool) -> None:
    """Run one step and the objectives once, so that a mistake is named before the long run."""
    backend = flow.backend
    w = flow.initial(lam)
    _require_floating(backend, w, "w_0 = init(λ)")
    start = flow.dynamics.init(w, lam)
    _require_floating(backend, start, "state")
    copies = map_leaves(lambda leaf: leaf + 0, (start, lam))
    _require_scalar(backend, flow.objective(start, lam), "the outer objective")
    if steps == 0:
        return
    _require_scalar(backend, flow.problem.inner_at(1)(w, lam), "the inner objective")
    moved = flow.step(start, lam, 1)
    _require_unchanged(backend, copies, (start, lam))
    _require_floating(backend, moved, "state after a step")
    _require_alike(backend, start, moved)
    if not may_draw and backend.is_concrete((start, lam)):
        _require_repeatable(flow, start, lam)


def refuse_unused(flow: Flow, lam: Tree, grad: Tree, steps: int) -> None:
    """Raise `ValueError` for a leaf of λ that nothing uses, if its part of `grad` is zero.

    Cost: nothing where no leaf's derivative is zero throughout; else a few steps, or T of them
    where a leaf is used late or never.
    """
    paths = [path for path, _ in named_leaves(lam, "λ")]
    zeros = leaves(map_leaves(lambda _, g: flow.backend.norm(g) == 0, lam, grad))
    idle = set(compress(paths, zeros))
    if not idle:
        return
    start = flow.backend.detach(flow.start(lam))
    w = flow.dynamics.params(start)
    maps: Iterable[Callable[[Tree], Tree]] = chain(
        (flow.start, partial(flow.objective, start), partial(flow.problem.inner_at(1), w)),
        (partial(flow.step, start, t=t) for t in range(1, max(1, steps) + 1)),
    )
    for use in maps:
        idle.difference_update(compress(paths, flow.backend.reached(use, lam)))
        if not idle:
            return
    raise ValueError(
        f"nothing uses {', '.join(sorted(idle))}: neither init, dynamics nor objectives; "
        "use it there (a derivative does not pass through detach, item or float), or leave it out"
    )


def _require_dynamics(dynamics: object) -> None:
    """Refuse what is often given in their place: a class, or an optimiser of a framework."""
    if isinstance(dynamics, type):
        raise TypeError(f"dynamics is the class {dynamics.__name__}: make one, with its numbers")
    missing = [name for name in PARTS if not callable(getattr(dynamics, name, None))]
    if missing:
        kind, lacking = type(dynamics).__qualname__, " and no ".join(missing)
        raise TypeError(
            f"dynamics is a {kind}, which has no {lacking}: "
            "expected pure functions such as GradientDescent(step_size=0.1) has; an optimiser that "
            "changes its parameters cannot be differentiated through"
        )


def _require_unchanged(backend: Backend, copies: Tree, originals: Tree) -> None:
    """Refuse functions that wrote into their arguments: engines keep them and run steps again."""
    if not backend.is_concrete((copies, originals)):
        return
    for name, copy, original in zip(("state", "λ"), copies, originals, strict=True):
        if backend.norm(map_leaves(lambda a, b: a - b, copy, original)) > 0:
            raise ValueError(
                f"the dynamics or an objective write into their {name}: each must be a pure "
                "function, which returns something new (w - g instead of w.sub_(g))"
            )


def _require_repeatable(flow: Flow, start: Tree, lam: Tree) -> None:
    """Refuse an inner objective or dynamics that draw at random: a repeated step is another.

    √ε apart is not refused: on a GPU the same sum may be rounded otherwise each time.
    """
    backend, w = flow.backend, flow.dynamics.params(start)
    root = math.sqrt(backend.epsilon(start))

    def slope() -> Tree:
        inner = flow.problem.inner_at(1)
        return backend.detach(backend.gradient(lambda w: inner(w, lam))(w))

    def moved(by: Tree) -> Tree:
        return backend.detach(flow.dynamics.step(lambda _: by, start, lam, 1))

    def distance(x: Tree, y: Tree) -> float:
        return backend.norm(map_leaves(lambda a, b: a - b, x, y))

    found = slope()
    state = moved(found)
    stride = distance(state, start) + root * backend.norm(state)
    for name, apart, size in (
        ("the inner objective", distance(found, slope()), backend.norm(found)),
        ("the dynamics", distance(state, moved(found)), stride),
    ):
        if apart > root * size:  # a NaN is not what is looked for here
            raise ValueError(
                f"{name} must not draw at random (dropout): step 1 is another one when repeated, "
                f"{apart:.3g} away, and engines repeat steps; draw what step t needs in `batches`, "
                "from a generator seeded with t" + ("" if backend.compiles else ", or use Unrolled")
            )


def _require_alike(backend: Backend, start: Tree, moved: Tree) -> None:
    before, after = (
        {path: backend.signature(leaf) for path, leaf in named_leaves(state, "state")}
        for state in (start, moved)
    )
    for path in before.keys() | after.keys():
        if before.get(path) != after.get(path):
            raise ValueError(
                f"the dynamics change {path} from {_show(before.get(path))} to "
                f"{_show(after.get(path))} in a step: shape and dtype must stay as init made them"
            )


def _require_floating(backend: Backend, tree: Tree, name: str) -> None:
    for path, leaf in named_leaves(tree, name):
        if not backend.owns(leaf):
            raise TypeError(
                f"{path} is a {type(leaf).__name__}, but λ is made of {backend.name} arrays: "
                "make it a floating-point array of that framework"
            )
        if not backend.is_floating(leaf):
            raise TypeError(
                f"{path} is {_show(backend.signature(leaf))}: expected floating-point numbers, "
                "because a derivative is taken"
            )


def _require_scalar(backend: Backend, value: Any, name: str) -> None:
    _require_floating(backend, value, name)
    shape, _ = backend.signature(value)
    if shape != ():
        raise ValueError(f"{name} must return a scalar array, found shape {shape}: sum or average")


def _show(signature: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if signature is None else f"{signature[1]} of shape {signature[0]}"


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
