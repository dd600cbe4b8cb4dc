"""T steps on a quadratic inner objective in closed form, whatever T is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Backend
from bilevel_core.arrays import entries, from_entries, norm
from bilevel_core.divergence import diagnose
from bilevel_core.engines.shared.linear_system import (
    LinearSystem,
    differences,
    linear_system,
    refuse_unfit,
    response,
)
from bilevel_core.engines.shared.quadratic import (
    Expansion,
    expand,
    pull_expansion,
    refuse_batches,
    refuse_other,
)
from bilevel_core.flow import Ends, Flow, Instance
from bilevel_core.results import Code, Pulled, Solution
from bilevel_core.tree import add, is_nothing, rebuild
from bilevel_core.types import Array, Tree

__all__ = ["Spectral"]


@final
@dataclass(frozen=True, kw_only=True)
class Spectral:
    """w_T and its derivative where L is quadratic in w, from the eigenvalues of its Hessian.

    T steps of `GradientDescent`, `HeavyBall` or `Nesterov` are a filter of the spectrum:

        w_T = w_0 + s_T(A) g_0,  for gradient descent  s_T(a) = -η Σ_{t<T} (1 - ηa)^t,

    with g_0 and A the gradient and Hessian of L_λ at w_0. The derivative of s_T(A) in A has the
    divided differences s_T[a_i, a_j] for its kernel in the eigenbasis, and those of s_T need no
    division (shared/linear_system.py): A may be singular or indefinite, and eigenvalues may
    coincide. With A = Q diag(a) Qᵀ, a cotangent c of w_T, β = Qᵀ c, γ = Qᵀ g_0 and
    Γ = Q (s_T[a_i, a_j] β_i γ_j) Qᵀ,

        (∂w_T/∂λ)ᵀ c = ∂Φ_0ᵀ (I + A s_T(A)) c + ∂_λ g(w_0)ᵀ s_T(A) c
                       + ∂_λ ⟨Γ, A⟩ + ∂_λ Σ_i s_T(a_i) β_i γ_i.

    Step size and momentum may depend on λ, but not on t. It looks at numbers, and so stays outside
    of `jit` and `vmap`.

    Cost: for n parameters and whatever T, two eigendecompositions, n³ each, and n² log T; n
    Hessian-vector products, and as many derivatives of ∇L in λ as the rank of Γ, n at most, and
    in practice far less; memory of some n² numbers.

    Raises:
        TypeError: the dynamics are others.
        ValueError: the problem has batches; a coefficient looks at t, or is one a parameter; λ is
            traced; or L is not quadratic, seen by its gradient at a point about as far from w_0 as
            the run goes (`refuse_other` in shared/quadratic.py).
        DivergenceError: the gradient or the Hessian is not finite at w_0.

    Source: Matrix Analysis (Bhatia, 1997), Theorem V.3.3 (Daleckii and Krein); Regularization of
    Inverse Problems (Engl, Hanke, Neubauer, 1996), section 6.1, Landweber iteration as a filter.
    """

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Return s_T from the spectrum."""
        del keep
        flow, backend, dynamics = instance.flow, instance.backend, instance.flow.dynamics
        _refuse(instance)
        about = expand(instance, "Spectral")
        a, q = backend.namespace.linalg.eigh(about.hessian)
        gamma = q.T @ entries(about.slope, about.start, backend)
        before, last, _ = backend.detach(_Filters(flow, instance.steps)(instance.lam, a))
        ends = _ends(instance, about, (before * gamma) @ q.T, (last * gamma) @ q.T)
        result, w = diagnose(instance, ends), dynamics.params(ends[1][-1])
        if result.code is Code.SUCCESS:
            step = q.sum(1) * _reach(about.start, w, backend) / len(a) ** 0.5
            aside = from_entries([step], about.start, backend)
            refuse_other(instance, about, add(w, aside), float(abs(a).max()))
        memory = (about.start, about.slope, a, q)
        return Solution(state=ends[1][-1], memory=memory, result=result)

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Pull a cotangent of w_T back through the spectrum."""
        flow, lam, backend = instance.flow, instance.lam, instance.backend
        start, slope, a, q = solution.memory
        reach = _reach(start, flow.dynamics.params(solution.state), backend)
        beta, gamma = (q.T @ entries(tree, start, backend) for tree in (cotangent, slope))
        filters, pull_filters = backend.vjp(_Filters(flow, instance.steps), lam, a)
        before, last, s = backend.detach(filters)
        kernel = _of_params(flow, lam, differences(_system(flow, lam, a), a, instance.steps), a)
        curving = q @ (kernel * beta[:, None] * gamma) @ q.T
        through_start = from_entries([q @ ((1 + a * s) * beta)], start, backend)
        gathered = add(
            pull_filters((0 * before, 0 * last, beta * gamma))[0],
            pull_expansion(instance, start, q @ (s * beta), curving, reach),
        )
        if not is_nothing(instance.start):
            return Pulled(lam=backend.detach(gathered), start=backend.detach(through_start))
        _, pull_start = backend.vjp(flow.initial, lam, fixed=(instance.data,))
        return Pulled(lam=backend.detach(add(gathered, pull_start(through_start)[0])))


def _reach(start: Tree, w: Tree, backend: Backend) -> float:
    """Return about how far from 0 the run goes."""
    return norm(start, backend) + norm(w, backend) or 1.0


@final
@dataclass(frozen=True)
class _Filters:
    """S_{T-1}(a) and S_T(a) of the state, (k, n) each, and s_T(a) of the parameters, (n,)."""

    flow: Flow
    steps: int

    def __call__(self, lam: Tree, a: Array) -> tuple[Array, Array, Array]:
        before, last = response(_system(self.flow, lam, a), a, self.steps)
        return before, last, _of_params(self.flow, lam, last, a)


def _system(flow: Flow, lam: Tree, a: Array) -> LinearSystem:
    return linear_system(flow.dynamics, lam, a, flow.backend)


def _of_params(flow: Flow, lam: Tree, rows: Array, a: Array) -> Array:
    """Return the row that is of the parameters among those of a state's leaves."""
    state = rebuild(flow.dynamics.init(a, lam), list(rows))
    row: Array = flow.dynamics.params(state)
    return row


def _ends(instance: Instance, about: Expansion, before: Array, last: Array) -> Ends:
    """Return [s_0, s_1] and [s_{T-1}, s_T] (one state where T = 0) from what is added to s_0.

    Args:
        instance: the run.
        about: the expansion at w_0.
        before: for each leaf of the state of one array, its entries at T - 1 less those at 0.
        last: the same at T.
    """
    backend, dynamics = instance.backend, instance.flow.dynamics
    start = backend.detach(dynamics.init(about.start, instance.lam))

    def moved(rows: Array) -> Tree:
        trees = [from_entries([row], about.start, backend) for row in rows]
        return add(start, rebuild(dynamics.init(rows[0], instance.lam), trees))

    if instance.steps == 0:
        return [start], [start]
    first = backend.detach(instance.step(start, 1))
    return [start, first], [moved(before), moved(last)]


def _refuse(instance: Instance) -> None:
    refuse_batches(instance.flow, "Spectral")
    refuse_unfit(instance.flow.dynamics, instance.lam, "Spectral")
    if not instance.backend.is_concrete(instance.lam):
        raise ValueError(
            "Spectral looks at numbers, and λ is traced: call it outside of jit and vmap, or use "
            "Reverse"
        )
