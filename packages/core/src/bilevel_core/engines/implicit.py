"""The hypergradient of the converged inner problem, by the implicit function theorem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from bilevel_core.abstract import LinearSolver, Tree
from bilevel_core.flow import Flow, run_ends
from bilevel_core.linear.conjugate_gradient import ConjugateGradient
from bilevel_core.results import Hypergradient, diagnose
from bilevel_core.tree import map_leaves

__all__ = ["Implicit"]


@final
@dataclass(frozen=True, kw_only=True)
class Implicit:
    """∇f = ∇_λ E - (∂_λ ∇_w L)ᵀ v,  where (∇²_w L) v = ∇_w E, at w = w_T.

    It differentiates the stationarity condition ∇_w L_λ(w) = 0 and not the dynamics, so the
    operator is symmetric whatever the dynamics are. It is the gradient of f, not of f_T: exact as
    far as w_T has converged.

    Attributes:
        solver: solves with the Hessian.

    Cost: T steps forward, and a Hessian-vector product for every product of the solver; memory of
    one state and a graph of the inner gradient, whatever T is.

    Source: Hyperparameter Optimization with Approximate Gradient (Pedregosa, 2016), Eq. 2 and
    Algorithm 1.
    """

    solver: LinearSolver = field(default_factory=ConjugateGradient)

    def __call__(self, flow: Flow, lam: Tree, steps: int) -> Hypergradient:
        """Return E(w_T, λ) and the implicit gradient."""
        backend, problem = flow.backend, flow.problem
        head, tail = run_ends(flow, lam, steps)
        w = flow.dynamics.params(tail[-1])
        outer, pull_back = backend.vjp(problem.outer, w, lam)
        towards_w, direct = backend.detach(pull_back(backend.ones_like(outer)))

        def stationarity(w: Tree, lam: Tree) -> Tree:
            return backend.gradient(lambda w: problem.inner(w, lam))(w)

        _, pull_residual = backend.vjp(stationarity, w, lam)
        v = self.solver(lambda x: backend.detach(pull_residual(x)[0]), towards_w, backend)
        _, through_lam = backend.detach(pull_residual(v))
        return Hypergradient(
            value=backend.detach(outer),
            grad=map_leaves(lambda a, b: a - b, direct, through_lam),
            state=tail[-1],
            result=diagnose(flow, lam, steps, head, tail),
        )
