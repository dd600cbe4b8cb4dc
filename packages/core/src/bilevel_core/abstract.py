"""The contracts of the framework, on one page; no maths lives here.

A bilevel problem asks for the λ that minimises

    f_T(λ) = E(w_T(λ), λ),   w_0 = Φ_0(λ),   w_t = Φ_t(w_{t-1}, λ),   t = 1 … T.

Each part of that sentence is one object:

    Problem   (problem.py)   Φ_0, the inner objective L_λ(w) and the outer objective E(w, λ)
    Dynamics  (dynamics/)    Φ_t: one step of an optimiser on L_λ
    Engine    (engines/)     how the solve λ ↦ w_T(λ) is run and differentiated
    Backend   (backends/)    the array framework: all that an engine may ask of it

Two more contracts serve them: a `LinearSolver` (linear/) solves the system of the implicit engine,
and an `OuterOptimizer`, which the backend makes, updates λ. `Problem` is data; the other five are
the protocols below.

The core of it all is `solve_inner` (solve_inner.py): w_T as an ordinary function of λ, which the
framework differentiates by the engine. E around it is ordinary code. `hypergradient`
(hypergradient.py) does both in one checked call. Either has its input checked (validation.py),
which finds the backend from the arrays and joins it with problem and dynamics into a `Flow`
(flow.py): three pure maps, all that an engine of f_T needs. The implicit engine, which
differentiates the condition ∇_w L = 0 instead, and those for quadratic objectives also look at the
problem and the dynamics that the flow holds. `minimize` repeats a hypergradient under an optimiser
for λ, which may be held to a set (constraints/); `minimize_online` moves λ during one inner run.

Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi,
Frasconi, Salzo, Grazzi, Pontil, 2018), Eqs. 1, 2, 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from bilevel_core.types import Array, Tree

if TYPE_CHECKING:
    from bilevel_core.flow import Instance
    from bilevel_core.results import Pulled, Solution

__all__ = [
    "Backend",
    "Dynamics",
    "Engine",
    "Gradient",
    "LinearSolver",
    "OuterOptimizer",
]


class Gradient(Protocol):
    """∇_w L_λ at step t, as a step of the dynamics is given it."""

    @property
    def data(self) -> Any:
        """The data of the run, for dynamics that look at them; None where there are none."""
        ...

    def __call__(self, w: Tree) -> Tree:
        """Return ∇_w L_λ(w)."""
        ...

    def with_value(self, w: Tree) -> tuple[Array, Tree]:
        """Return L_λ(w) and ∇_w L_λ(w), at the cost of the gradient."""
        ...

    def held(self) -> Gradient:
        """Return the same gradient with no derivative of its own: a first-order step."""
        ...


class Dynamics(Protocol):
    """Φ: an optimiser of the inner objective, as pure functions of its state.

    Whatever else than w the optimiser keeps (a velocity, moments, a counter) lives in the state, so
    that an engine can differentiate through it. Leaves of whole numbers are carried along: they
    have no derivative.

    A class may say `own_arrays = True`: every leaf that it asks a gradient at is an array of its
    own making, from `init` on, and none is made from another one. Then λ and the other leaves
    cannot depend on it, and PyTorch needs no node to keep their derivatives apart.
    """

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return the state s_0 that starts at the parameters w = Φ_0(λ)."""
        ...

    def step(self, gradient: Gradient, state: Tree, lam: Tree, t: int) -> Tree:
        """Return s_t from s_{t-1}; `gradient(w)` is ∇_w L_λ(w), and t counts from 1."""
        ...

    def params(self, state: Tree) -> Tree:
        """Return the parameters w that a state holds."""
        ...


class Engine(Protocol):
    """A way to run the solve λ ↦ w_T(λ) and to differentiate it; the outer objective is not here.

    Failure is a value in what both return (`Result`); the entry points raise it.
    """

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run from λ to s_T; `keep` what `pull` needs, as a tree of arrays."""
        ...

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Pull a cotangent of w_T back to λ, and to w_0 where the instance has a start."""
        ...


class LinearSolver(Protocol):
    """Solves A x = b for an operator A that is known by its products."""

    def __call__(
        self,
        product: Callable[[Tree], Tree],
        b: Tree,
        backend: Backend,
        *,
        symmetric: bool,
        guess: Tree | None = None,
    ) -> Tree:
        """Return x; `product(v)` is A v, and `symmetric` says whether A is known to equal Aᵀ.

        An iterative solver starts at `guess`, or at 0 where none is handed on. One that needs a
        symmetric A raises `ValueError` where it is not declared so. How near x is to a solution is
        for the caller to check.
        """
        ...


class OuterOptimizer(Protocol):
    """An optimiser of λ with its own memory (moments, schedules)."""

    def update(self, grad: Tree, lam: Tree) -> Tree:
        """Take one step from λ along the hypergradient and return the new λ."""
        ...


class Backend(Protocol):
    """What an engine may ask of an array framework.

    Trees are mapped by `tree.py` and measured by `arrays.py`, not here.
    """

    @property
    def namespace(self) -> Any:
        """The framework's module of array functions (`torch`, `jax.numpy`)."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether loops are compiled or traced as a whole, with t a traced number."""
        ...

    def owns(self, leaf: object) -> bool:
        """Say whether a leaf is an array of this framework."""
        ...

    def is_concrete(self, tree: Tree) -> bool:
        """Say whether numbers can be looked at: not while the framework traces a function."""
        ...

    def detach(self, tree: Tree) -> Tree:
        """Return the same numbers with no derivative attached."""
        ...

    def values_only(self) -> AbstractContextManager[object]:
        """Return a context in which no graph is kept but what `vjp` keeps."""
        ...

    def loop(
        self,
        body: Callable[[Tree, Tree, int], Tree],
        carry: Tree,
        fixed: Tree,
        times: range,
        *,
        keep: bool = False,
    ) -> tuple[Any, Tree]:
        """Do `carry = body(carry, fixed, t)` for every t; returns (history, last carry).

        Where it is to `keep` the way, `history[i]` is the carry *before* step i of `times`; else
        the history is ().

        A framework may compile the body once for all t, which is then an integer scalar array. It
        finds a compiled body again where `body` compares equal, so a body should be a function of
        a module or a frozen dataclass, and read arrays from `fixed` instead of holding them.
        """
        ...

    def gradient(
        self, function: Callable[[Tree], Array], *, apart: bool = False
    ) -> Callable[[Tree], tuple[Array, Tree]]:
        """Return w ↦ (value, gradient) of a scalar function; both can be differentiated again.

        `apart` says that no leaf of w follows from another one, nor what the function captures from
        any of them.
        """
        ...

    def depends_on(self, function: Callable[[Tree], Tree], tree: Tree) -> list[bool]:
        """Say for each leaf, in order, whether the function's value depends on it at all.

        It is a matter of the function's operations and not of its numbers: a derivative that
        happens to be zero counts.
        """
        ...

    def vjp(
        self, function: Callable[..., Tree], *primals: Tree, fixed: tuple[Any, ...] = ()
    ) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
        """Return function(*primals, *fixed) and the map from a cotangent to the products with Jᵀ.

        One product for each of `primals`; leaves of whole numbers have zero.
        """
        ...

    def jvps(
        self, function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        """Return function(*primals) and its derivatives along a batch of tangents.

        The leaves of `tangents`, and of the derivatives, have a leading axis over the batch.
        """
        ...

    def differentiable(
        self,
        run: Callable[..., tuple[Tree, Tree]],
        pull: Callable[..., tuple[Tree, Tree]],
        probe: Callable[..., Tree],
        lam: Tree,
        start: Tree,
        data: Any,
    ) -> Tree:
        """Return the value of `run` as a node whose derivative is `pull`.

        Args:
            run: `run(lam, start, data, keep)` returns the value and a tree of arrays, the memory.
            pull: `pull(lam, start, data, memory, cotangent)` returns the products with Jᵀ for λ and
                start. It is not differentiated again: that is refused.
            probe: `probe(lam, start, data)`, what may not depend on a differentiated array that
                stands in none of the three, since its derivative would be lost.
            lam: differentiated.
            start: differentiated; () where there is none.
            data: whatever the problem takes, not differentiated.
        """
        ...

    def mapped(self, function: Callable[..., Tree]) -> Callable[..., Tree]:
        """Return the function over a leading axis of its arguments, and of what it returns."""
        ...

    def outer_optimizer(self, factory: Callable[..., Any], lam: Tree) -> OuterOptimizer:
        """Make the framework's own kind of optimiser for λ from its factory."""
        ...
