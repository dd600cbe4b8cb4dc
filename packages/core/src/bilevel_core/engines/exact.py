"""The exact bilevel problem where the inner objective is quadratic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

from bilevel_core.abstract import Array, Backend, Tree
from bilevel_core.engines.implicit import Implicit
from bilevel_core.flow import Flow
from bilevel_core.linear.dense import Dense, matrix_of, solve_matrix
from bilevel_core.results import DivergenceError, Hypergradient
from bilevel_core.tree import map_leaves

__all__ = ["Exact"]

AT_THE_MINIMISER = Implicit(solver=Dense(), stationarity=None)


@final
@dataclass(frozen=True, kw_only=True)
class Exact:
    """f(λ) = E(w_λ, λ) and ∇f, where w_λ = argmin L_λ = w_0 - (∇²L)⁻¹ ∇L(w_0) for a quadratic L.

    The limit of f_T as T grows, with no inner run: neither T nor the dynamics' coefficients change
    a digit. The state that is returned is the one that the dynamics start in at w_λ. The gradient
    is that of `Implicit` with the solver `Dense`.

    Cost: for n parameters, 2n Hessian-vector products, memory of n² numbers and time of n³.

    Raises:
        ValueError: the problem has batches; the Hessian is not positive definite, so that there is
            no w_λ or not only one; or L is not quadratic, seen by its gradient at w_λ, which must
            be √ε (‖∇L(w_0)‖ + ‖∇²L‖ ‖w_λ‖) at most, with ε the machine epsilon.
        DivergenceError: the gradient or the Hessian is not finite at w_0.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 3 and 4; Hyperparameter Optimization with Approximate Gradient (Pedregosa,
    2016), Eq. 2.
    """

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f(λ) and ∇f(λ), whatever `steps` is."""
        del steps
        if flow.problem.batches is not None:
            raise ValueError(
                "Exact minimises the whole inner objective, but the problem has batches: give a "
                "problem without, or use Reverse"
            )
        w = _minimiser(flow, lam)
        problem = replace(flow.problem, init=lambda lam: w)  # noqa: ARG005
        return AT_THE_MINIMISER(replace(flow, problem=problem), lam, 0)


def _minimiser(flow: Flow, lam: Tree) -> Tree:
    """Return w_λ by one Newton step."""
    backend = flow.backend
    slope = backend.gradient(lambda w: flow.problem.inner(w, lam))
    w_0 = backend.detach(flow.problem.init(lam))
    slope_0, pull_back = backend.vjp(slope, w_0)
    slope_0 = backend.detach(slope_0)
    hessian = matrix_of(lambda v: backend.detach(pull_back(v)[0]), slope_0, backend)
    largest = _largest_eigenvalue(backend, slope_0, hessian)
    way = solve_matrix(hessian, slope_0, backend)
    w: Tree = map_leaves(lambda a, b: a - b, w_0, way)
    first, last = backend.norm(slope_0), backend.norm(backend.detach(slope(w)))
    if not last <= math.sqrt(backend.epsilon(w)) * (first + largest * backend.norm(w)):
        raise ValueError(
            "Exact needs an inner objective that is quadratic in w, and the gradient of this one "
            f"has norm {last:.3g} after a Newton step from where it had {first:.3g}: use Implicit "
            "or Reverse"
        )
    return w


def _largest_eigenvalue(backend: Backend, slope: Tree, hessian: Array) -> float:
    """Return ‖∇²L‖, or refuse a Hessian that is not positive definite."""
    if not math.isfinite(backend.norm((slope, hessian))):
        raise DivergenceError(
            "the inner objective's gradient or Hessian is not finite at w_0: look for a division "
            "by zero or a logarithm of zero in it"
        )
    values = backend.namespace.linalg.eigvalsh(hessian)
    lowest, largest = float(values[0]), float(values[-1])
    if not lowest > max(0.0, len(hessian) * backend.epsilon(hessian) * largest):
        raise ValueError(
            f"Exact needs one minimiser, but the inner objective's Hessian is singular or "
            f"indefinite, with eigenvalues from {lowest:.3g} to {largest:.3g}: add a penalty on w"
        )
    return largest
