"""Problem, dynamics and backend, joined into the pure maps that make w_T; and one inner run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, final

from bilevel_core.abstract import Backend, Dynamics, Gradient
from bilevel_core.problem import Problem
from bilevel_core.tree import is_nothing, leaves, map_leaves, plain
from bilevel_core.types import Array, Tree

__all__ = [
    "Advance",
    "Ends",
    "Flow",
    "Instance",
    "KnownGradient",
    "Outer",
    "Seen",
    "Trajectory",
    "advance",
    "constant",
    "first_params",
    "loop_ends",
    "parts",
    "run_ends",
    "start_state",
    "trajectory",
]


@final
@dataclass(frozen=True, kw_only=True)
class Flow:
    """s_0 = start(λ), s_t = step(s_{t-1}, λ, t), w_T = params(s_T).

    It holds no arrays: λ, the data and a given start are arguments, so that what a framework
    compiles from it serves any of them.
    """

    problem: Problem
    dynamics: Dynamics
    backend: Backend

    def initial(self, lam: Tree, data: Any) -> Tree:
        """Return w_0 = Φ_0(λ)."""
        return plain(self.problem.init(lam, *_given(data)))

    def start(self, lam: Tree, start: Tree, data: Any) -> Tree:
        """Return s_0, the dynamics' state at the given start, or at Φ_0(λ) where that is ()."""
        w = self.initial(lam, data) if is_nothing(start) else plain(start)
        return plain(self.dynamics.init(w, lam))

    def seen(self, t: int, data: Any) -> Seen:
        """Return what step t sees of the data."""
        if self.problem.batches is None:
            return Seen(_given(data), data)
        try:
            return Seen((self.problem.batches(t, *_given(data)),), data)
        except StopIteration as error:
            raise ValueError(
                f"batches({t}) raised StopIteration: it must be a function of t alone, and the "
                "same batch whenever it is asked for t, not the next one of an iterator"
            ) from error

    def inner(self, w: Tree, lam: Tree, seen: Seen) -> Array:
        """Return L_λ(w)."""
        return self.problem.inner(w, lam, *seen.by_inner)

    def slope(self, lam: Tree, seen: Seen, *, apart: bool = False) -> Gradient:
        """Return ∇_w L_λ as a function of w; `apart` as for the backend's `gradient`."""
        return Slope(self.backend, lambda w: self.inner(w, lam, seen), seen.data, apart)

    def step(self, state: Tree, lam: Tree, seen: Seen, t: int) -> Tree:
        """Return s_t = Φ_t(s_{t-1}, λ), where the inner objective has `seen` what it sees at t."""
        dynamics = self.dynamics
        slope = self.slope(lam, seen, apart=getattr(dynamics, "own_arrays", False))
        return plain(dynamics.step(slope, state, lam, t))

    def outer(self, w: Tree, lam: Tree, data: Any) -> Array:
        """Return E(w, λ)."""
        return self.problem.outer(w, lam, *_given(data))


class Seen(NamedTuple):
    """What a step sees.

    Attributes:
        by_inner: what the inner objective is given beside w and λ: a batch, the data or nothing.
        data: the data of the run.
    """

    by_inner: tuple[Any, ...]
    data: Any


def _given(data: Any) -> tuple[Any, ...]:
    return () if data is None else (data,)


@final
@dataclass(slots=True)
class Slope:
    """∇L, as the dynamics are given it (`Gradient`).

    One is made at every step: a frozen class would take four times as long.
    """

    backend: Backend
    objective: Callable[[Tree], Array]
    data: Any
    apart: bool
    constant: bool = False

    def with_value(self, w: Tree) -> tuple[Array, Tree]:
        """Return L(w) and ∇L(w)."""
        found = self.backend.gradient(self.objective, apart=self.apart)(w)
        return self.backend.detach(found) if self.constant else found

    def __call__(self, w: Tree) -> Tree:
        """Return ∇L(w)."""
        return self.with_value(w)[1]

    def held(self) -> Gradient:
        """Return the same numbers with no derivative."""
        return replace(self, constant=True)


@final
@dataclass(frozen=True)
class KnownGradient:
    """A gradient of which only the numbers are known (`Gradient`)."""

    find: Callable[[Tree], Tree]
    data: Any = None

    def __call__(self, w: Tree) -> Tree:
        """Return the numbers at w."""
        return self.find(w)

    def with_value(self, w: Tree) -> tuple[Array, Tree]:
        """Return 0 for the value, and the numbers at w."""
        found = self.find(w)
        return 0 * leaves(found)[0].reshape(-1)[:1].sum(), found

    def held(self) -> Gradient:
        """Return itself."""
        return self


@final
@dataclass(frozen=True)
class Outer:
    """(w, λ, data) ↦ E, as one object that a backend finds again."""

    flow: Flow

    def __call__(self, w: Tree, lam: Tree, data: Any) -> Array:
        """Return E(w, λ)."""
        return self.flow.outer(w, lam, data)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """One inner run: the maps, and all that they are given.

    Attributes:
        flow: the maps.
        lam: λ.
        steps: T.
        data: what the problem's functions have as their last argument; None where they have none.
        start: w_0 in place of Φ_0(λ), a tree like it; () where there is none.
        guess: where the implicit engine's solver starts; None for 0.
    """

    flow: Flow
    lam: Tree
    steps: int
    data: Any = None
    start: Tree = ()
    guess: Tree | None = None

    @property
    def backend(self) -> Backend:
        """The framework."""
        return self.flow.backend

    @property
    def fixed(self) -> tuple[Tree, Any]:
        """What every step reads."""
        return self.lam, self.data

    def step(self, state: Tree, t: int) -> Tree:
        """Return s_t."""
        return self.flow.step(state, self.lam, self.flow.seen(t, self.data), t)


def constant(instance: Instance) -> Instance:
    """Return the same run with no derivatives attached."""
    detach = instance.backend.detach
    return replace(instance, lam=detach(instance.lam), start=detach(instance.start))


def parts(instance: Instance, *, outer: bool = False) -> Tree:
    """Return what a solve is made of, and the outer objective where it is asked for.

    None of it may have a derivative if λ, the start and the data have none: it would get lost.

    Cost: Φ_0, each objective and a step, with no gradient.
    """
    flow, lam, data = instance.flow, instance.lam, instance.data
    w = first_params(instance)
    state = flow.dynamics.init(w, lam)
    found = [state]
    if instance.steps > 0:
        held = KnownGradient(lambda w: map_leaves(lambda leaf: 0 * leaf, w), data)
        found += [
            flow.inner(w, lam, flow.seen(1, data)),
            flow.dynamics.step(held, state, lam, 1),
        ]
    if outer:
        found.append(flow.outer(flow.dynamics.params(state), lam, data))
    return found


def first_params(instance: Instance) -> Tree:
    """Return w_0, which the inner objective takes."""
    if is_nothing(instance.start):
        return instance.flow.initial(instance.lam, instance.data)
    return plain(instance.start)


def start_state(instance: Instance) -> Tree:
    """Return s_0, with no derivatives attached."""
    flow = instance.flow
    return flow.backend.detach(flow.start(instance.lam, instance.start, instance.data))


@final
@dataclass(frozen=True)
class Advance:
    """The body of a loop over steps: s_t from s_{t-1}, with no derivatives attached."""

    flow: Flow

    def __call__(self, state: Tree, fixed: tuple[Tree, Any], t: int) -> Tree:
        """Return s_t."""
        lam, data = fixed
        return self.flow.backend.detach(self.flow.step(state, lam, self.flow.seen(t, data), t))


@final
@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The states from s_position to s_end.

    Attributes:
        position: where it begins.
        end: where it ends.
        history: the states s_position … s_{end-1}, as the backend keeps them.
        last: s_end.
    """

    position: int
    end: int
    history: Any
    last: Tree

    def state(self, t: int) -> Tree:
        """Return s_t."""
        return self.last if t == self.end else self.history[t - self.position]

    def head(self) -> list[Tree]:
        """Return the first two states, or one where there is one."""
        return [self.state(t) for t in range(self.position, min(self.position + 2, self.end + 1))]

    def tail(self) -> list[Tree]:
        """Return the last two states, or one where there is one."""
        return [self.state(t) for t in range(max(self.position, self.end - 1), self.end + 1)]


def trajectory(instance: Instance, state: Tree, position: int, end: int) -> Trajectory:
    """Return all states from s_position = `state` to s_end, with no derivatives attached."""
    history, last = instance.backend.loop(
        Advance(instance.flow), state, instance.fixed, range(position + 1, end + 1), keep=True
    )
    return Trajectory(position=position, end=end, history=history, last=last)


def advance(instance: Instance, state: Tree, position: int, end: int) -> Tree:
    """Return s_end from s_position, with no derivatives attached; memory: one state."""
    times = range(position + 1, end + 1)
    return instance.backend.loop(Advance(instance.flow), state, instance.fixed, times)[1]


Ends: TypeAlias = tuple[list[Tree], list[Tree]]
"""[s_0, s_1] and [s_{T-1}, s_T], one state in each where T = 0."""


def run_ends(instance: Instance) -> Ends:
    """Run all T steps and return both ends; memory: four states."""
    body, state = Advance(instance.flow), start_state(instance)
    return loop_ends(instance.backend, body, state, instance.fixed, instance.steps)


def loop_ends(
    backend: Backend, body: Callable[[Tree, Tree, int], Tree], carry: Tree, fixed: Tree, steps: int
) -> Ends:
    """Loop over t = 1 … T; returns the carries at t = 0, 1 and at t = T-1, T (one where T = 0)."""
    if steps == 0:
        return [carry], [carry]
    head = [carry, backend.loop(body, carry, fixed, range(1, 2))[1]]
    if steps == 1:
        return head, head
    before = backend.loop(body, head[1], fixed, range(2, steps))[1]
    return head, [before, backend.loop(body, before, fixed, range(steps, steps + 1))[1]]
