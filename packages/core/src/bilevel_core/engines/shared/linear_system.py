"""Optimisers as linear systems, and their response to a quadratic objective.

Gradient descent and its relatives with momentum are linear in their state and in the gradient:

    z_t = F z_{t-1} + b ∇L(h z_{t-1})

with a small matrix F (k, k), a column b (k, 1) and a row h (1, k) that act alike on every
coordinate of w. On a quadratic, ∇L(w_0 + x) = g_0 + A x, the coordinates of an eigenvector of A
keep to themselves: with z counted from the start,

    z_t = M(a) z_{t-1} + b γ,  M(a) = F + a b h,  so  z_T = S_T(a) γ,  S_T(a) = Σ_{t<T} M(a)^t b,

for an eigenvalue a and γ the coordinate of g_0. S_T is a polynomial in a. Its divided differences

    S_T[a, c] = (S_T(a) - S_T(c)) / (a - c),  S_T'(a) where the two coincide,

are built like itself by doubling, S_{2t} = S_t + M^t S_t, with the product rule
(X Y)[a, c] = X(a) Y[a, c] + X[a, c] Y(c). Nothing is divided, so close eigenvalues do no harm.

Source: Analysis and Design of Optimization Algorithms via Integral Quadratic Constraints (Lessard,
Recht, Packard, 2016), section 2, optimisers as linear systems; Functions of Matrices (Higham,
2008), section B.16, divided differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import prod
from typing import Any, TypeVar, final

from bilevel_core.abstract import Backend, Dynamics
from bilevel_core.dynamics import GradientDescent, HeavyBall, Nesterov
from bilevel_core.flow import KnownGradient
from bilevel_core.tree import leaves, map_leaves, rebuild
from bilevel_core.types import Array, Tree

__all__ = ["LinearSystem", "differences", "linear_system", "refuse_unfit", "response"]


@final
@dataclass(frozen=True, kw_only=True)
class LinearSystem:
    """An optimiser's step on one coordinate, z ↦ F z + b ∇L(h z).

    Attributes:
        transition: F, (k, k).
        input: b, (k, 1).
        output: h, (1, k).
    """

    transition: Array
    input: Array
    output: Array


@final
class _AnyStep:
    """A step that is no number: whatever looks at it fails."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise TypeError

    def __bool__(self) -> bool:
        raise TypeError

    def __str__(self) -> str:
        raise TypeError


ANY_STEP: Any = _AnyStep()


def refuse_unfit(dynamics: Dynamics, lam: Tree, engine: str) -> None:
    """Refuse dynamics that are not known as linear, or whose coefficients are not one number.

    Raises:
        TypeError: the dynamics are not `GradientDescent`, `HeavyBall` or `Nesterov`.
        ValueError: a coefficient looks at the step t, or is one a parameter.
    """
    if not isinstance(dynamics, GradientDescent | HeavyBall | Nesterov):
        raise TypeError(
            f"{engine} knows T steps of GradientDescent, HeavyBall and Nesterov in closed form, "
            f"found {type(dynamics).__name__}: use Reverse"
        )
    for name in (field.name for field in fields(dynamics)):
        if found := _unfit(getattr(dynamics, name), lam):
            raise ValueError(
                f"{engine} needs one {name} for all steps and parameters, found {found}: make it "
                "a number or a function of λ alone, or use Reverse"
            )


def _unfit(coefficient: Any, lam: Tree) -> str:
    """Return what is wrong with a coefficient, or nothing."""
    value = coefficient
    if callable(coefficient):
        try:
            value = coefficient(lam, ANY_STEP)
        except Exception:  # whatever the arithmetic of a framework raises
            return "one that looks at the step t"
    if isinstance(value, dict | list | tuple):
        return "a tree with one a parameter"
    shape = tuple(getattr(value, "shape", ()))
    return "" if prod(shape) == 1 else f"one a parameter, of shape {shape}"


def linear_system(dynamics: Dynamics, lam: Tree, like: Array, backend: Backend) -> LinearSystem:
    """Return the system of dynamics that are not unfit, by stepping from unit states.

    Args:
        dynamics: the optimiser, whose coefficients may depend on λ.
        lam: λ.
        like: an array (n,) of w's kind, n ≥ 1.
        backend: the framework.
    """
    xp, one = backend.namespace, backend.namespace.ones_like(like[:1])
    rest = dynamics.init(0 * one, lam)
    count = len(leaves(rest))

    def answer(state: Tree, slope: Array) -> tuple[Array, Array]:
        asked = []

        def gradient(w: Tree) -> Tree:
            asked.append(w)
            return slope

        moved = map_leaves(
            lambda _, z: z, rest, dynamics.step(KnownGradient(gradient), state, lam, ANY_STEP)
        )
        return xp.concatenate([z.reshape(1) for z in leaves(moved)]), asked[0].reshape(1)

    units = [
        rebuild(rest, [one if i == j else 0 * one for i in range(count)]) for j in range(count)
    ]
    columns, outputs = zip(*(answer(unit, 0 * one) for unit in units), strict=True)
    return LinearSystem(
        transition=xp.stack(columns, 1),
        input=answer(rest, one)[0][:, None],
        output=xp.stack(outputs, 1),
    )


def response(system: LinearSystem, a: Array, steps: int) -> tuple[Array, Array]:
    """Return S_{T-1}(a) and S_T(a), (k, n) each, for eigenvalues a (n,); zeros where T = 0.

    Cost: k³ n log T.
    """
    matrix, column = _matrix(system, a), system.input[..., None] + 0 * a
    before = _doubled(matrix, column, steps - 1, _times) if steps > 1 else 0 * column
    last = column + _times(matrix, before) if steps else before
    return before[:, 0], last[:, 0]


def differences(system: LinearSystem, a: Array, steps: int) -> Array:
    """Return S_T[a_i, a_j], (k, n, n), for eigenvalues a (n,).

    Cost: k³ n² log T, memory of about 4 k² n² numbers.
    """
    matrix, column = _matrix(system, a), system.input[..., None] + 0 * a
    none = 0 * (a[:, None] + a)
    slope = (system.input * system.output)[..., None, None] + none
    # S_0 = 0 and S_1 = b know nothing of a: for either the loop leaves these differences, of 0.
    start = _Differenced(column, 0 * column[..., None] + none)
    total = _doubled(_Differenced(matrix, slope), start, steps, _Differenced.times)
    return total.difference[:, 0]


def _matrix(system: LinearSystem, a: Array) -> Array:
    """Return M(a), (k, k, n)."""
    return system.transition[..., None] + (system.input * system.output)[..., None] * a


@final
@dataclass(frozen=True)
class _Differenced:
    """A matrix function of a: its values (k, m, n) and divided differences (k, m, n, n)."""

    value: Array
    difference: Array

    def __add__(self, other: _Differenced) -> _Differenced:
        return _Differenced(self.value + other.value, self.difference + other.difference)

    def times(self, other: _Differenced) -> _Differenced:
        """Return the product, with the product rule of divided differences."""
        first, second = self.value[..., :, None], other.value[..., None, :]
        difference = _times(first, other.difference) + _times(self.difference, second)
        return _Differenced(_times(self.value, other.value), difference)


def _times(x: Array, y: Array) -> Array:
    """Return the matrix products of (k, l, …) and (l, m, …), for every … ."""
    return (x[:, :, None] * y[None]).sum(1)


_X = TypeVar("_X", Array, _Differenced)


def _doubled(matrix: _X, column: _X, steps: int, times: Callable[[_X, _X], _X]) -> _X:
    """Return Σ_{t<T} M^t b of T ≥ 1 steps; b of none."""
    power, total = matrix, column
    for bit in f"{steps:b}"[1:]:
        total = total + times(power, total)
        power = times(power, power)
        if bit == "1":
            total = column + times(matrix, total)
            power = times(matrix, power)
    return total
