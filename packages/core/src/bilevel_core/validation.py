"""What is checked before anything runs, so that a mistake is named before the long run.

`checked_flow` looks at the input of every entry point, and takes three steps where a problem is
new; `refuse_unused` looks for the reason where a derivative is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from itertools import chain, compress
from typing import Any
from weakref import WeakKeyDictionary

from bilevel_core.abstract import Backend, Dynamics, Tree
from bilevel_core.backend import backend_of
from bilevel_core.flow import Flow
from bilevel_core.problem import Problem
from bilevel_core.tree import leaves, map_leaves, named_leaves

__all__ = ["checked_flow", "refuse_unused"]

PARTS = ("init", "step", "params")
"""Of `Dynamics`."""


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
    """Run the objectives and some steps, so that a mistake is named before the long run."""
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
        # A copy: dynamics may write into the gradient that they are given.
        copy = map_leaves(lambda leaf: leaf + 0, by)
        return backend.detach(flow.dynamics.step(lambda _: copy, start, lam, 1))

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
