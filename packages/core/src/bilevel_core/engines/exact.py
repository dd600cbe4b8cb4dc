"""The exact bilevel problem where the inner objective is quadratic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

from bilevel_core.abstract import Tree
from bilevel_core.engines.implicit import Implicit
from bilevel_core.engines.quadratic import Expansion, expand, refuse_batches, refuse_other
from bilevel_core.flow import Flow
from bilevel_core.linear.dense import Dense, solve_matrix
from bilevel_core.results import Hypergradient
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
            no w_λ or not only one; L is not quadratic, seen by its gradient at w_λ
            (`refuse_other` in quadratic.py); or the dynamics cannot be at w_λ, such as
            `ProjectedGradient` on a set that it is not in.
        DivergenceError: the gradient or the Hessian is not finite at w_0.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 3 and 4; Hyperparameter Optimization with Approximate Gradient (Pedregosa,
    2016), Eq. 2.
    """

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return f(λ) and ∇f(λ), whatever `steps` is."""
        del steps
        refuse_batches(flow, "Exact")
        w = _minimiser(flow, lam)
        _refuse_elsewhere(flow, lam, w)
        problem = replace(flow.problem, init=lambda lam: w)  # noqa: ARG005
        return AT_THE_MINIMISER(replace(flow, problem=problem), lam, 0)


def _minimiser(flow: Flow, lam: Tree) -> Tree:
    """Return w_λ by one Newton step."""
    about = expand(flow, lam, "Exact")
    largest = _largest_eigenvalue(flow, about)
    way = solve_matrix(about.hessian, about.slope, flow.backend)
    w: Tree = map_leaves(lambda a, b: a - b, about.start, way)
    refuse_other(flow, lam, about, w, largest)
    return w


def _refuse_elsewhere(flow: Flow, lam: Tree, w: Tree) -> None:
    """Refuse dynamics that do not start at the w they are given: w_λ is no limit of theirs."""
    backend = flow.backend
    start = flow.dynamics.params(flow.dynamics.init(w, lam))
    off = backend.norm(map_leaves(lambda a, b: a - b, w, start))
    # Written so that a NaN is refused.
    if not off <= math.sqrt(backend.epsilon(w)) * backend.norm(w):
        raise ValueError(
            f"Exact takes the free minimiser w_λ, but {type(flow.dynamics).__name__} moves a start "
            f"there by {off:.3g}, so its limit is another point: use Reverse"
        )


def _largest_eigenvalue(flow: Flow, about: Expansion) -> float:
    """Return ‖∇²L‖, or refuse a Hessian that is not positive definite."""
    values = flow.backend.namespace.linalg.eigvalsh(about.hessian)
    lowest, largest = float(values[0]), float(values[-1])
    if not lowest > max(0.0, len(values) * flow.backend.epsilon(values) * largest):
        raise ValueError(
            f"Exact needs one minimiser, but the inner objective's Hessian is singular or "
            f"indefinite, with eigenvalues from {lowest:.3g} to {largest:.3g}: add a penalty on w"
        )
    return largest
