"""The contracts of the framework, on one page; no maths lives here.

A bilevel problem asks for the λ that minimises

    f_T(λ) = E(w_T(λ), λ),   w_0 = Φ_0(λ),   w_t = Φ_t(w_{t-1}, λ),   t = 1 … T.

Each part of that sentence is one object:

    Problem   (problem.py)   Φ_0, the inner objective L_λ(w) and the outer objective E(w, λ)
    Dynamics  (dynamics/)    Φ_t: one step of an optimiser on L_λ
    Engine    (engines/)     how ∇f_T(λ) is computed: reverse, forward, implicit, …
    Backend   (backends/)    the array framework: all that an engine may ask of it

Two more contracts serve them: a `LinearSolver` (linear/) solves the system of the implicit engine,
and an `OuterOptimizer`, which the backend makes, updates λ. `Problem` is data; the other five are
the protocols below.

`hypergradient` (hypergradient.py) has its input checked once (validation.py), which finds the
backend from the arrays and joins it with problem and dynamics into a `Flow` (flow.py), and calls
the engine with that. An engine of f_T needs no more than the flow's three pure maps; the implicit
engine, which differentiates the condition ∇_w L = 0 instead, and those for quadratic objectives
also look at the problem and the dynamics that the flow holds. `minimize` (outer.py) repeats that
under an optimiser for λ, which may be held to a set (constraints.py); `minimize_online` (online.py)
moves λ during one inner run.

Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi,
Frasconi, Salzo, Grazzi, Pontil, 2018), Eqs. 1, 2, 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from bilevel_core.flow import Flow
    from bilevel_core.results import Hypergradient

__all__ = [
    "Array",
    "Backend",
    "Dynamics",
    "Engine",
    "LinearSolver",
    "OuterOptimizer",
    "Tree",
]

Array: TypeAlias = Any
"""An array of the framework in use, such as a `torch.Tensor`."""

Tree: TypeAlias = Any
"""An array, or a dict, list or tuple of trees."""


class Dynamics(Protocol):
    """Φ: an optimiser of the inner objective, as pure functions of its state.

    Whatever else than w the optimiser keeps (a velocity, moments) lives in the state, so that an
    engine can differentiate through it.
    """

    def init(self, w: Tree, lam: Tree) -> Tree:
        """Return the state s_0 that starts at the parameters w = Φ_0(λ)."""
        ...

    def step(self, gradient: Callable[[Tree], Tree], state: Tree, lam: Tree, t: int) -> Tree:
        """Return s_t from s_{t-1}; `gradient(w)` is ∇_w L_λ(w), and t counts from 1."""
        ...

    def params(self, state: Tree) -> Tree:
        """Return the parameters w that a state holds."""
        ...


class Engine(Protocol):
    """A way to compute f_T(λ) and ∇f_T(λ)."""

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Run T = `steps` inner steps from λ; failure is a value (`Hypergradient.result`)."""
        ...


class LinearSolver(Protocol):
    """Solves A x = b for an operator A that is known by its products."""

    def __call__(
        self, product: Callable[[Tree], Tree], b: Tree, backend: Backend, *, symmetric: bool
    ) -> Tree:
        """Return x; `product(v)` is A v, and `symmetric` says whether A is known to equal Aᵀ.

        A solver that needs a symmetric A raises `ValueError` where it is not declared so. How near
        x is to a solution is for the caller to check.
        """
        ...


class OuterOptimizer(Protocol):
    """An optimiser of λ with its own memory (moments, schedules)."""

    def update(self, grad: Tree, lam: Tree) -> Tree:
        """Take one step from λ along the hypergradient and return the new λ."""
        ...


class Backend(Protocol):
    """What an engine may ask of an array framework. Trees are mapped by `tree.py`, not here."""

    @property
    def name(self) -> str:
        """The framework's name, as its extra is called."""
        ...

    @property
    def namespace(self) -> Any:
        """The framework's module of array functions (`torch`, `jax.numpy`)."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether loops are compiled or traced as a whole, so that no step has a graph to keep."""
        ...

    def owns(self, leaf: object) -> bool:
        """Say whether a leaf is an array of this framework."""
        ...

    def signature(self, leaf: Array) -> tuple[tuple[int, ...], str]:
        """Return (shape, dtype) of an array, for checks and messages."""
        ...

    def is_floating(self, leaf: Array) -> bool:
        """Say whether an array holds real floating-point numbers."""
        ...

    def epsilon(self, tree: Tree) -> float:
        """Return the largest machine epsilon among a tree's arrays."""
        ...

    def norm(self, tree: Tree) -> float:
        """Return the Euclidean norm over all of a tree's entries (NaN or inf if any is)."""
        ...

    def ones_like(self, leaf: Array) -> Array:
        """Return an array of ones of the same shape, dtype and device."""
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

    def fold(
        self, body: Callable[[Tree, Tree, int], Tree], carry: Tree, fixed: Tree, times: range
    ) -> Tree:
        """Return the carry after `carry = body(carry, fixed, t)` for every t.

        A framework may compile the body once for all t, which is then an integer scalar array. It
        finds a compiled body again where `body` compares equal, so a body should be a function of
        a module or a frozen dataclass, and read arrays from `fixed` instead of holding them.
        """
        ...

    def record(
        self, body: Callable[[Tree, Tree, int], Tree], carry: Tree, fixed: Tree, times: range
    ) -> tuple[Any, Tree]:
        """Do what `fold` does and keep the way: (history, last carry)."""
        ...

    def recall(self, history: Any, index: int) -> Tree:
        """Return the carry that a recorded history had *before* its step `index`, from 0."""
        ...

    def gradient(self, function: Callable[[Tree], Array]) -> Callable[[Tree], Tree]:
        """Return the gradient of a scalar function of one tree; it can be differentiated again."""
        ...

    def reached(self, function: Callable[[Tree], Tree], tree: Tree) -> list[bool]:
        """Say for each leaf, in order, whether the function's value depends on it at all.

        It is a matter of the function's operations and not of its numbers: a derivative that
        happens to be zero counts.
        """
        ...

    def vjp(
        self, function: Callable[..., Tree], *primals: Tree
    ) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
        """Return function(*primals) and the map from a cotangent to the products with Jᵀ."""
        ...

    def graph_entries(self, value: Tree, besides: Tree) -> int:
        """Return how many numbers the graph behind a value of `vjp` holds, its primals included.

        What the graph behind `besides` holds too, such as data, is not counted.
        """
        ...

    def jvps(
        self, function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
    ) -> tuple[Tree, Tree]:
        """Return function(*primals) and its derivatives along a batch of tangents.

        The leaves of `tangents`, and of the derivatives, have a leading axis over the batch.
        """
        ...

    def unit_tangents(self, tree: Tree, first: int, count: int) -> Tree:
        """Return rows first … first+count-1 of the identity on a tree's entries, as a batch."""
        ...

    def from_entries(self, parts: list[Array], like: Tree) -> Tree:
        """Return a tree from its entries, one-dimensional arrays that follow each other.

        Its leaves have the shapes and types of those of `like`.
        """
        ...

    def size(self, tree: Tree) -> int:
        """Return the number of entries of a tree."""
        ...

    def dot(self, x: Tree, y: Tree) -> Array:
        """Return ⟨x, y⟩ over all entries, a scalar array."""
        ...

    def solve(self, matrix: Array, b: Array) -> Array:
        """Return x (n,) with A x = b for A (n, n); not finite where a pivot of A is zero."""
        ...

    def outer_optimizer(self, factory: Callable[..., Any], lam: Tree) -> OuterOptimizer:
        """Make the framework's own kind of optimiser for λ from its factory."""
        ...
