"""T steps on a quadratic inner objective in closed form, whatever T is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import final

from bilevel_core.abstract import Array, Tree
from bilevel_core.engines.linear_system import (
    LinearSystem,
    differences,
    linear_system,
    refuse_unfit,
    response,
)
from bilevel_core.engines.quadratic import (
    Expansion,
    expand,
    pull_expansion,
    refuse_batches,
    refuse_other,
)
from bilevel_core.engines.sweep import start_sweep
from bilevel_core.flow import Flow
from bilevel_core.linear.dense import entries
from bilevel_core.results import Code, Hypergradient, diagnose
from bilevel_core.tree import add, rebuild

__all__ = ["Spectral"]


@final
@dataclass(frozen=True, kw_only=True)
class Spectral:
    """f_T and ∇f_T where L is quadratic in w, from the eigenvalues of its Hessian.

    T steps of `GradientDescent`, `HeavyBall` or `Nesterov` are a filter of the spectrum:

        w_T = w_0 + s_T(A) g_0,  for gradient descent  s_T(a) = -η Σ_{t<T} (1 - ηa)^t,

    with g_0 and A the gradient and Hessian of L_λ at w_0. The derivative of s_T(A) in A has the
    divided differences s_T[a_i, a_j] for its kernel in the eigenbasis, and those of s_T need no
    division (linear_system.py): A may be singular or indefinite, and eigenvalues may coincide. With
    A = Q diag(a) Qᵀ, β = Qᵀ ∇_w E, γ = Qᵀ g_0 and Γ = Q (s_T[a_i, a_j] β_i γ_j) Qᵀ,

        ∇f_T = ∇_λ E + ∂Φ_0ᵀ (I + A s_T(A)) ∇_w E + ∂_λ g(w_0)ᵀ s_T(A) ∇_w E
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
            the run goes (`refuse_other` in quadratic.py).
        DivergenceError: the gradient or the Hessian is not finite at w_0.

    Source: Matrix Analysis (Bhatia, 1997), Theorem V.3.3 (Daleckii and Krein); Regularization of
    Inverse Problems (Engl, Hanke, Neubauer, 1996), section 6.1, Landweber iteration as a filter.
    """

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f_T(λ) and ∇f_T(λ)."""
        backend, dynamics = flow.backend, flow.dynamics
        _refuse(flow, lam)
        about = expand(flow, lam, "Spectral")
        a, q = backend.namespace.linalg.eigh(about.hessian)
        w_0 = about.start
        gamma = q.T @ entries(about.slope, w_0, backend)
        filters, pull_filters = backend.vjp(_Filters(flow, steps), lam, a)
        before, last, s = backend.detach(filters)
        head, tail = _ends(flow, lam, about, steps, (before * gamma) @ q.T, (last * gamma) @ q.T)
        result, w = diagnose(flow, lam, steps, head, tail), dynamics.params(tail[-1])
        reach = backend.norm(w_0) + backend.norm(w) or 1.0
        if result.code is Code.SUCCESS:
            aside = backend.from_entries([q.sum(1) * reach / len(a) ** 0.5], w_0)
            refuse_other(flow, lam, about, add(w, aside), float(abs(a).max()))
        value, (alpha, direct) = start_sweep(flow, lam, tail[-1])
        beta = q.T @ entries(dynamics.params(alpha), w_0, backend)
        kernel = _of_params(flow, lam, differences(_system(flow, lam, a), a, steps), a)
        curving = q @ (kernel * beta[:, None] * gamma) @ q.T
        _, pull_start = backend.vjp(flow.initial, lam)
        parts = (
            pull_filters((0 * before, 0 * last, beta * gamma))[0],
            pull_start(backend.from_entries([q @ ((1 + a * s) * beta)], w_0))[0],
            pull_expansion(flow, lam, about, q @ (s * beta), curving, reach),
        )
        return Hypergradient(
            value=value,
            grad=backend.detach(reduce(add, parts, direct)),
            state=tail[-1],
            result=result,
        )


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


def _ends(
    flow: Flow, lam: Tree, about: Expansion, steps: int, before: Array, last: Array
) -> tuple[list[Tree], list[Tree]]:
    """Return [s_0, s_1] and [s_{T-1}, s_T] (one state where T = 0) from what is added to s_0.

    Args:
        flow: the maps.
        lam: λ.
        about: the expansion at w_0.
        steps: T.
        before: for each leaf of the state of one array, its entries at T - 1 less those at 0.
        last: the same at T.
    """
    backend, dynamics = flow.backend, flow.dynamics
    start = backend.detach(dynamics.init(about.start, lam))

    def moved(rows: Array) -> Tree:
        trees = [backend.from_entries([row], about.start) for row in rows]
        return add(start, rebuild(dynamics.init(rows[0], lam), trees))

    if steps == 0:
        return [start], [start]
    first = backend.detach(flow.step(start, lam, 1))
    return [start, first], [moved(before), moved(last)]


def _refuse(flow: Flow, lam: Tree) -> None:
    refuse_batches(flow, "Spectral")
    refuse_unfit(flow.dynamics, lam, "Spectral")
    if not flow.backend.is_concrete(lam):
        raise ValueError(
            "Spectral looks at numbers, and λ is traced: call it outside of jit and vmap, or use "
            "Reverse"
        )
