"""What is checked before anything runs, so that a mistake is named before the long run.

`checked_instance` looks at the input of every entry point, and `check_maps` takes a few steps where
a problem is new; `refuse_unused` looks for the reason where a derivative is zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from itertools import chain, compress
from typing import Any

from bilevel_core.abstract import Backend, Dynamics, Engine
from bilevel_core.arrays import (
    distance,
    framework,
    is_floating,
    norm,
    root_epsilon,
    signature,
    unit_tangents,
)
from bilevel_core.backends.find import backend_of, other_leaf
from bilevel_core.engines.direct import Direct
from bilevel_core.engines.forward import Forward
from bilevel_core.engines.unrolled import Unrolled
from bilevel_core.flow import (
    Advance,
    Flow,
    Instance,
    KnownGradient,
    constant,
    first_params,
    start_state,
)
from bilevel_core.problem import Problem
from bilevel_core.tree import is_nothing, leaves, map_leaves, named_leaves
from bilevel_core.types import Tree

__all__ = ["check_maps", "checked_instance", "refuse_unused"]

PARTS = ("init", "step", "params")
"""Of `Dynamics`."""

ONCE = (Unrolled, Direct)
"""Engines that take every step once, so that it may draw at random (dropout)."""

NO_DERIVATIVE = re.compile(
    r"(?:derivative for (?:aten::)?|forward AD with )(\w+)|(ZeroTensors) are immutable"
)
"""What torch says of an operation without a derivative; the last of `mse_loss`, in Forward."""


def checked_instance(
    problem: Problem, dynamics: Dynamics, lam: Tree, data: Any, start: Tree, steps: int
) -> Instance:
    """Return the run that an entry point is asked for, or raise what `hypergradient` says."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, found {steps!r}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, found {steps}")
    _require_dynamics(dynamics)
    backend = backend_of(lam, "λ")
    _require_floating(backend, lam, "λ")
    start = () if start is None else start
    _require_floating(backend, start, "start")
    flow = Flow(problem=problem, dynamics=dynamics, backend=backend)
    return Instance(flow=flow, lam=lam, steps=steps, data=data, start=start)


def check_maps(instance: Instance, engine: Engine | None) -> None:
    """Check problem and dynamics, unless they passed before with an input of these shapes.

    Args:
        instance: the run.
        engine: how it is to be differentiated; None where it is not, and every step taken once.
    """
    backend = instance.backend
    once = engine is None or isinstance(engine, ONCE)
    may_draw = once and not backend.compiles
    shapes = tuple((path, leaf.shape, leaf.dtype) for path, leaf in named_leaves(instance.lam))
    # What was looked at: numbers are not while they are traced.
    concrete = backend.is_concrete((instance.lam, instance.start, instance.data))
    given = (instance.steps > 0, instance.data is None, is_nothing(instance.start))
    looks: dict[Hashable, Callable[[Instance], None]] = {
        (backend, shapes, may_draw, concrete, given): partial(_check_maps, may_draw=may_draw)
    }
    if instance.steps > 0 and not backend.compiles and not isinstance(engine, Direct | None):
        forward = isinstance(engine, Forward)
        looks[backend, shapes, "forward" if forward else "second"] = partial(
            _require_derivatives, engine=type(engine).__name__, forward=forward
        )
    passed = instance.flow.problem.passed.of(instance.flow.dynamics)
    for key, look in looks.items():
        if passed is None or key not in passed:
            with backend.values_only():
                look(constant(instance))
            if passed is not None:
                passed.add(key)


def _check_maps(instance: Instance, *, may_draw: bool) -> None:
    """Run the objectives and some steps, so that a mistake is named before the long run."""
    flow, backend, lam, data = instance.flow, instance.backend, instance.lam, instance.data
    w = first_params(instance)
    _require_floating(backend, w, "w_0 = init(λ)")
    start = flow.dynamics.init(w, lam)
    _require_numbers(backend, start, "state")
    copies = map_leaves(lambda leaf: leaf + 0, (start, lam))
    value = flow.outer(flow.dynamics.params(start), lam, data)
    _require_scalar(backend, value, "the outer objective")
    if instance.steps == 0:
        return
    _require_scalar(backend, flow.inner(w, lam, flow.seen(1, data)), "the inner objective")
    moved = instance.step(start, 1)
    _require_unchanged(backend, copies, (start, lam))
    _require_numbers(backend, moved, "state after a step")
    _require_alike(start, moved)
    if not may_draw and backend.is_concrete((moved, value, lam)):
        _require_repeatable(instance, start)
        _require_same_value(instance, value, flow.outer(flow.dynamics.params(start), lam, data))
        if backend.compiles:
            _require_traceable(instance, start)


def refuse_unused(instance: Instance, grad: Tree) -> None:
    """Raise `ValueError` for a leaf of λ that nothing uses, if its part of `grad` is zero.

    Cost: nothing where no leaf's derivative is zero throughout; else a few steps, or T of them
    where a leaf is used late or never.
    """
    flow, backend, lam, data = instance.flow, instance.backend, instance.lam, instance.data
    paths = [path for path, _ in named_leaves(lam, "λ")]
    zeros = leaves(map_leaves(lambda _, g: norm(g, backend) == 0, lam, grad))
    idle = set(compress(paths, zeros))
    if not idle:
        return
    start = start_state(instance)
    w, first = flow.dynamics.params(start), backend.detach(first_params(instance))

    def step(lam: Tree, t: int) -> Tree:
        return flow.step(start, lam, flow.seen(t, data), t)

    maps: Iterable[Callable[[Tree], Tree]] = chain(
        (
            lambda lam: flow.start(lam, instance.start, data),
            lambda lam: flow.outer(w, lam, data),
            lambda lam: flow.inner(first, lam, flow.seen(1, data)),
        ),
        (partial(step, t=t) for t in range(1, max(1, instance.steps) + 1)),
    )
    for use in maps:
        idle.difference_update(compress(paths, backend.depends_on(use, lam)))
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
        if distance(copy, original, backend) > 0:
            raise ValueError(
                f"the dynamics or an objective write into their {name}: each must be a pure "
                "function, which returns something new (w - g instead of w.sub_(g))"
            )


def _require_repeatable(instance: Instance, start: Tree) -> None:
    """Refuse an inner objective or dynamics that draw at random: a repeated step is another.

    √ε apart is not refused: on a GPU the same sum may be rounded otherwise each time.
    """
    flow, backend, lam = instance.flow, instance.backend, instance.lam
    w, root = first_params(instance), root_epsilon(start, backend)

    def slope() -> Tree:
        return backend.detach(flow.slope(lam, flow.seen(1, instance.data))(w))

    def moved(by: Tree) -> Tree:
        # A copy: dynamics may write into the gradient that they are given.
        known = KnownGradient(lambda w: map_leaves(lambda _, leaf: leaf + 0, w, by), instance.data)
        return backend.detach(flow.dynamics.step(known, start, lam, 1))

    found = slope()
    state = moved(found)
    stride = distance(state, start, backend) + root * norm(state, backend)
    for name, apart, size in (
        ("the inner objective", distance(found, slope(), backend), norm(found, backend)),
        ("the dynamics", distance(state, moved(found), backend), stride),
    ):
        if apart > root * size:  # a NaN is not what is looked for here
            raise ValueError(
                f"{name} must not draw at random (dropout) or keep state: step 1 is another one "
                f"when repeated, {apart:.3g} away, and engines repeat steps; draw what step t "
                "needs in `batches`, from a generator seeded with t"
                + ("" if backend.compiles else ", or use Unrolled")
            )


def _require_same_value(instance: Instance, before: Any, after: Any) -> None:
    """Refuse an outer objective that an inner step, or its own call, turned into another one."""
    backend = instance.backend
    if distance(after, before, backend) > root_epsilon(before, backend) * norm(before, backend):
        raise ValueError(
            f"the outer objective of the same w and λ is {float(before):.6g} at first and "
            f"{float(after):.6g} after an inner step: it draws at random, or a module keeps state "
            "(running averages of batch norm, vectors of spectral norm); evaluate with a module's "
            "training mode off and its state fixed, or with batch statistics"
        )


def _require_traceable(instance: Instance, start: Tree) -> None:
    """Refuse batches that read t as text: while a loop is compiled, the text is not the number's.

    Steps 2 to 4, taken from s_0 as they are, are compared with the compiled ones.
    """
    backend, times = instance.backend, range(2, min(instance.steps, 4) + 1)
    if instance.flow.problem.batches is None or not times:
        return
    body, state = Advance(instance.flow), start
    for t in times:
        state = body(state, instance.fixed, t)
    _, compiled = backend.loop(body, start, instance.fixed, times)
    size = distance(state, start, backend) + norm(state, backend)
    if distance(state, compiled, backend) > root_epsilon(start, backend) * size:
        raise ValueError(
            "batches(t) reads t in a way that JAX compiles as a constant, such as its text: "
            "compute with t instead, such as jax.random.fold_in(key, t) or rows[t]"
        )


def _require_derivatives(instance: Instance, engine: str, *, forward: bool) -> None:
    """Refuse an operation whose derivative the engine needs and the framework does not have."""
    flow, backend, lam = instance.flow, instance.backend, instance.lam
    start, seen = start_state(instance), flow.seen(1, instance.data)

    def step(state: Tree, lam: Tree) -> Tree:
        return flow.step(state, lam, seen, 1)

    try:
        if forward:
            inputs = (start, lam)
            backend.jvps(step, inputs, unit_tangents(inputs, 0, 1, backend))
        else:
            moved, pull_back = backend.vjp(step, start, lam)
            pull_back(backend.detach(moved))
    except (RuntimeError, NotImplementedError) as error:
        found = NO_DERIVATIVE.search(str(error))
        if found is None:
            raise
        name = (found[1] or "an operation of the objective").removesuffix("_backward")
        remedy = "take Reverse" if forward else "Direct and FirstOrder do without"
        raise ValueError(
            f"{name} has no {'forward' if forward else 'second'} derivative in "
            f"{framework(backend)}, which {engine} needs: write it in simpler "
            "operations (((a - b) ** 2).mean() for mse_loss; for attention, "
            f"torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), or {remedy}"
        ) from error


def _require_alike(start: Tree, moved: Tree) -> None:
    before, after = (
        {path: signature(leaf) for path, leaf in named_leaves(state, "state")}
        for state in (start, moved)
    )
    for path in before.keys() | after.keys():
        if before.get(path) != after.get(path):
            raise ValueError(
                f"the dynamics change {path} from {_show(before.get(path))} to "
                f"{_show(after.get(path))} in a step: shape and dtype must stay as init made them"
            )


def _require_numbers(backend: Backend, tree: Tree, name: str) -> None:
    """Refuse leaves of a state that are neither floating-point numbers nor whole ones."""
    for path, leaf in named_leaves(tree, name):
        _require_owned(backend, leaf, path)
        if "complex" in str(leaf.dtype):
            raise TypeError(f"{path} is {_show(signature(leaf))}: expected real numbers")


def _require_owned(backend: Backend, leaf: Any, path: str) -> None:
    if backend.owns(leaf):
        return
    remedy = other_leaf(leaf) or "make it a floating-point array of that framework"
    raise TypeError(
        f"{path} is a {type(leaf).__name__}, but λ is made of {framework(backend)} arrays: {remedy}"
    )


def _require_floating(backend: Backend, tree: Tree, name: str) -> None:
    for path, leaf in named_leaves(tree, name):
        _require_owned(backend, leaf, path)
        if not is_floating(leaf):
            raise TypeError(
                f"{path} is {_show(signature(leaf))}: expected floating-point numbers, "
                "because a derivative is taken"
            )
        if type(leaf).__name__ == "Parameter" and not leaf.requires_grad:
            raise ValueError(
                f"{path} is a frozen parameter (requires_grad=False), and would move: leave it "
                "out, as in {n: p for n, p in net.named_parameters() if p.requires_grad}; "
                "torch.func.functional_call takes the others from the module"
            )


def _require_scalar(backend: Backend, value: Any, name: str) -> None:
    _require_floating(backend, value, name)
    shape, _ = signature(value)
    if shape != ():
        raise ValueError(f"{name} must return a scalar array, found shape {shape}: sum or average")


def _show(signature: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if signature is None else f"{signature[1]} of shape {signature[0]}"
