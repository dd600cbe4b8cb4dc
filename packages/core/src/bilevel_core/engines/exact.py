"""The exact bilevel problem where the inner objective is quadratic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from bilevel_core.abstract import Backend
from bilevel_core.arrays import distance, epsilon, norm
from bilevel_core.engines.implicit import Implicit
from bilevel_core.engines.shared.quadratic import (
    Expansion,
    expand,
    refuse_batches,
    refuse_other,
)
from bilevel_core.flow import Instance
from bilevel_core.linear.dense import Dense, solve_matrix
from bilevel_core.results import Pulled, Solution
from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree

__all__ = ["Exact"]

AT_THE_MINIMISER = Implicit(solver=Dense(), stationarity=None)


@final
@dataclass(frozen=True, kw_only=True)
class Exact:
    """f(λ) = E(w_λ, λ) and ∇f, where w_λ = argmin L_λ = w_0 - (∇²L)⁻¹ ∇L(w_0) for a quadratic L.

    The limit of f_T as T grows, with no inner run: neither T, nor a start, nor the dynamics'
    coefficients change a digit. The state is the one that the dynamics start in at w_λ. The
    derivative is that of `Implicit` with the solver `Dense`.

    Cost: for n parameters, 2n Hessian-vector products, memory of n² numbers and time of n³.

    Raises:
        ValueError: the problem has batches; the Hessian is not positive definite, so that there is
            no w_λ or not only one; L is not quadratic, seen by its gradient at w_λ
            (`refuse_other` in shared/quadratic.py); or the dynamics cannot be at w_λ, such as
            `ProjectedGradient` on a set that it is not in.
        DivergenceError: the gradient or the Hessian is not finite at w_0.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Eqs. 3 and 4; Hyperparameter Optimization with Approximate Gradient (Pedregosa,
    2016), Eq. 2.
    """

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Return the state at w_λ, whatever T is."""
        del keep
        refuse_batches(instance.flow, "Exact")
        w = _minimiser(instance)
        _refuse_elsewhere(instance, w)
        state = instance.flow.dynamics.init(w, instance.lam)
        return Solution(state=state)

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Pull back by the implicit function theorem."""
        return AT_THE_MINIMISER.pull(instance, solution, cotangent)


def _minimiser(instance: Instance) -> Tree:
    """Return w_λ by one Newton step."""
    about = expand(instance, "Exact")
    largest = _largest_eigenvalue(instance.backend, about)
    way = solve_matrix(about.hessian, about.slope, instance.backend)
    w: Tree = map_leaves(lambda a, b: a - b, about.start, way)
    refuse_other(instance, about, w, largest)
    return w


def _refuse_elsewhere(instance: Instance, w: Tree) -> None:
    """Refuse dynamics that do not start at the w they are given: w_λ is no limit of theirs."""
    backend, dynamics = instance.backend, instance.flow.dynamics
    start = dynamics.params(dynamics.init(w, instance.lam))
    off = distance(w, start, backend)
    # Written so that a NaN is refused.
    if not off <= math.sqrt(epsilon(w, backend)) * norm(w, backend):
        raise ValueError(
            f"Exact takes the free minimiser w_λ, but {type(dynamics).__name__} moves a start "
            f"there by {off:.3g}, so its limit is another point: use Reverse"
        )


def _largest_eigenvalue(backend: Backend, about: Expansion) -> float:
    """Return ‖∇²L‖, or refuse a Hessian that is not positive definite."""
    values = backend.namespace.linalg.eigvalsh(about.hessian)
    lowest, largest = float(values[0]), float(values[-1])
    if not lowest > max(0.0, len(values) * epsilon(values, backend) * largest):
        raise ValueError(
            f"Exact needs one minimiser, but the inner objective's Hessian is singular or "
            f"indefinite, with eigenvalues from {lowest:.3g} to {largest:.3g}: add a penalty on w"
        )
    return largest
