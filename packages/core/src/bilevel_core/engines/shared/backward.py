"""The backward pass of reverse mode, which its engines share; they differ in what they store.

    α_T = (∂w_T/∂s_T)ᵀ c,  α_{t-1} = A_tᵀ α_t,  (∂w_T/∂λ)ᵀ c = Σ_t B_tᵀ α_t + (∂s_0/∂λ)ᵀ α_0

for a cotangent c of w_T. A_t and B_t are the derivatives of Φ_t in the state and in λ; only their
products with α are formed.

Source: Forward and Reverse Gradient-Based Hyperparameter Optimization (Franceschi, Donini,
Frasconi, Pontil, 2017), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, final

from bilevel_core.abstract import Backend
from bilevel_core.arrays import floating, is_floating, zeros
from bilevel_core.divergence import repeated
from bilevel_core.flow import Ends, Flow, Instance, Trajectory
from bilevel_core.results import Pulled
from bilevel_core.tree import add, is_nothing, map_leaves
from bilevel_core.types import Array, Tree

__all__ = ["Backward", "apart", "back_step", "back_through", "begin", "finish"]

Backward: TypeAlias = tuple[Tree, Tree, Array]
"""A backward pass on its way: α, the part of the product with ∂w_T/∂λ gathered so far, and how far
a step that was run again ended from where it had at the most."""


def begin(instance: Instance, last: Tree, cotangent: Tree) -> Backward:
    """Begin at s_T with a cotangent of w_T."""
    backend = instance.backend
    _, pull_back = backend.vjp(instance.flow.dynamics.params, last)
    (alpha,) = backend.detach(pull_back(cotangent))
    gap = backend.namespace.zeros_like(floating(last)[0].reshape(-1)[:1].sum())
    return alpha, zeros(instance.lam, backend), gap


def back_step(instance: Instance, passed: Backward, before: Tree, after: Tree, t: int) -> Backward:
    """Pull α back through step t, which is run again from the state before it.

    `after` is the state that it led to, or () where that is not at hand.
    """
    # A loop of one step, whose body a backend compiles once for all of them.
    fixed = (*instance.fixed, before, after)
    behind: Backward
    _, behind = instance.backend.loop(_OneBack(instance.flow), passed, fixed, range(t, t + 1))
    return behind


def back_through(instance: Instance, passed: Backward, way: Trajectory) -> Backward:
    """Pull α back through all steps of a trajectory, the last one first."""
    times = range(way.end, way.position, -1)
    body, fixed = _Back(instance.flow, way.position, way.end), (way.history, way.last)
    behind: Backward
    _, behind = instance.backend.loop(body, passed, (*instance.fixed, *fixed), times)
    return behind


def finish(instance: Instance, passed: Backward, ends: Ends, *, whole: bool = True) -> Pulled:
    """Pull α_0 back through Φ_0 and the start; with `whole` False, α is not that of s_0."""
    alpha, gathered, gap = passed
    backend, flow = instance.backend, instance.flow
    start = zeros(instance.start, backend)
    if whole:
        _, pull_back = backend.vjp(flow.start, instance.lam, instance.start, fixed=(instance.data,))
        partial, start = backend.detach(pull_back(alpha))
        gathered = backend.detach(add(gathered, partial))
    measured = 0.0 if backend.compiles else float(gap)
    return Pulled(lam=gathered, start=start, result=repeated(instance, ends, measured))


def _step_backward(
    flow: Flow, passed: Backward, fixed: tuple[Tree, Any], before: Tree, after: Tree, t: int
) -> Backward:
    alpha, gathered, gap = passed
    backend, (lam, data) = flow.backend, fixed
    seen = flow.seen(t, data)
    moved, pull_back = backend.vjp(lambda s, x: flow.step(s, x, seen, t), before, lam)
    alpha, partial = pull_back(alpha)
    if not backend.compiles and not is_nothing(after):
        gap = apart(backend.detach(moved), after, gap, backend)
    behind: Backward = backend.detach((alpha, add(gathered, partial), gap))
    return behind


def apart(x: Tree, y: Tree, least: Array, backend: Backend) -> Array:
    """Return max |x - y| over the entries, or `least` if that is more.

    It looks at no number where that would wait for a device. On a processor, where a step that is
    run again ends in the same bits, those are compared first, in a third of the time.
    """
    largest = backend.namespace.maximum

    def note(a: Array, b: Array) -> None:
        nonlocal least
        alike = getattr(a, "is_cpu", False) and backend.namespace.equal(a, b)
        if is_floating(a) and 0 not in a.shape and not alike:
            gap = a - b
            least = largest(least, largest(gap.max(), -gap.min()))  # without an array for |gap|

    map_leaves(note, x, y)
    return least


@final
@dataclass(frozen=True)
class _OneBack:
    """The body of a loop of one step; `fixed` is (λ, data, the state before, the state after)."""

    flow: Flow

    def __call__(self, passed: Backward, fixed: tuple[Any, ...], t: int) -> Backward:
        lam, data, before, after = fixed
        return _step_backward(self.flow, passed, (lam, data), before, after, t)


@final
@dataclass(frozen=True)
class _Back:
    """The body of a loop over steps, the last one first; `fixed` is (λ, data, history, s_end).

    Attributes:
        flow: the maps.
        position: the step at which the history begins.
        end: the step at which it ends.
    """

    flow: Flow
    position: int
    end: int

    def __call__(self, passed: Backward, fixed: tuple[Any, ...], t: int) -> Backward:
        lam, data, history, last = fixed
        before, after = history[t - 1 - self.position], ()
        if not self.flow.backend.compiles:
            after = last if t == self.end else history[t - self.position]
        return _step_backward(self.flow, passed, (lam, data), before, after, t)
