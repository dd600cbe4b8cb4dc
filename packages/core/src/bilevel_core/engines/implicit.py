"""The derivative of the converged inner problem, by the implicit function theorem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import final

from bilevel_core.abstract import Backend, LinearSolver
from bilevel_core.arrays import distance, epsilon, norm, zeros
from bilevel_core.divergence import diagnose
from bilevel_core.flow import Instance, Seen, run_ends
from bilevel_core.linear.conjugate_gradient import ConjugateGradient
from bilevel_core.linear.dense import Dense
from bilevel_core.results import Code, Pulled, Result, Solution
from bilevel_core.tree import map_leaves
from bilevel_core.types import Tree

__all__ = ["Implicit"]


@final
@dataclass(frozen=True, kw_only=True)
class Implicit:
    """(∂w/∂λ)ᵀ c = -(∂_λ ∇_w L)ᵀ v,  where (∇²_w L) v = c, at w = w_T.

    It differentiates the stationarity condition ∇_w L_λ(w) = 0 and not the dynamics, so the
    operator is symmetric whatever the dynamics are. It is the derivative of w_λ, not of w_T: exact
    as far as w_T has converged, which is checked, as is the solution of the system.

    Attributes:
        solver: solves with the Hessian, which it is told is symmetric.
        tolerance: the largest ‖A v - b‖ / ‖b‖ of the linear system that is accepted. None accepts
            any finite v, such as that of a deliberately short Neumann series.
        stationarity: the largest ‖∇_w L(w_T)‖ / ‖∇_w L(w_0)‖ that is accepted. So that a start at
            the optimum passes, ‖∇_w L(w_T)‖ ≤ 100 ε ‖H‖ (1 + ‖w_T‖) is accepted too, with ε the
            machine epsilon and ‖H‖ an estimate of ‖∇²_w L‖: rounding leaves about as much, where
            weights are of the size of 1. None accepts any.

    A failed check is the result `NOT_STATIONARY` or `NOT_SOLVED`. Where the problem has batches,
    every product sees the next one after those of the run; then both checks must be left out.

    Under `jax.jit` nothing is checked, and the solver must do without a look at numbers, as
    `ConjugateGradient` does there, and `Neumann`.

    Cost: T steps forward, a Hessian-vector product for every product of the solver and one for the
    check of its solution, and the inner gradient at both ends (four more products where the second
    is not smaller as asked); memory of four states (the first two and the last two) for the verdict
    on the run, the solver's vectors and a graph of the inner gradient, whatever T is.

    Raises:
        ValueError: `tolerance` or `stationarity` is not above 0; or the problem has batches, and
            there are checks or a solver that needs one operator.

    Source: Hyperparameter Optimization with Approximate Gradient (Pedregosa, 2016), Eq. 2 and
    Algorithm 1; with batches, Convergence Properties of Stochastic Hypergradients (Grazzi, Pontil,
    Salzo, 2021).
    """

    solver: LinearSolver = field(default_factory=ConjugateGradient)
    tolerance: float | None = 1e-3
    stationarity: float | None = 1e-2

    def __post_init__(self) -> None:
        for name in ("tolerance", "stationarity"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise ValueError(f"{name} must be above 0, or None to accept any, found {bound}")

    def run(self, instance: Instance, *, keep: bool) -> Solution:
        """Run all T steps."""
        del keep
        self._refuse_batches(instance)
        ends = run_ends(instance)
        w_0 = instance.flow.dynamics.params(ends[0][0])
        return Solution(state=ends[1][-1], memory=(w_0,), result=diagnose(instance, ends))

    def pull(self, instance: Instance, solution: Solution, cotangent: Tree) -> Pulled:
        """Solve the system at w_T, and judge w_T and the solution."""
        flow, backend = instance.flow, instance.backend
        w, later = flow.dynamics.params(solution.state), count(instance.steps + 1)

        def slope(w: Tree, lam: Tree, seen: Seen) -> Tree:
            return flow.slope(lam, seen)(w)

        def at_w() -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
            seen = flow.seen(next(later), instance.data)
            return backend.vjp(slope, w, instance.lam, fixed=(seen,))

        slope_w, pull_slope = at_w()

        def hessian(v: Tree) -> Tree:
            # Of a stochastic objective each product sees a batch of its own.
            pull = pull_slope if flow.problem.batches is None else at_w()[1]
            return backend.detach(pull(v)[0])

        guess = {} if instance.guess is None else {"guess": instance.guess}
        v = self.solver(hessian, cotangent, backend, symmetric=True, **guess)
        _, through_lam = backend.detach(pull_slope(v))
        concrete = backend.is_concrete((w, v, instance.lam))
        result = Result() if concrete else Result(code=Code.UNCHECKED)
        if concrete and self.stationarity is not None:
            (w_0,) = solution.memory
            slope_0 = slope(w_0, instance.lam, flow.seen(1, instance.data))
            first, last = norm(slope_0, backend), norm(slope_w, backend)
            result = _judge_stationarity(backend, hessian, first, last, w, self.stationarity)
        if result.code is Code.SUCCESS:
            result = _judge_solution(backend, hessian, v, cotangent, self.tolerance)
        return Pulled(
            lam=map_leaves(lambda leaf: -leaf, through_lam),
            start=zeros(instance.start, backend),
            result=result,
            guess=v,
        )

    def _refuse_batches(self, instance: Instance) -> None:
        """Refuse checks that a stochastic objective cannot pass, and solvers that need one."""
        if instance.flow.problem.batches is None:
            return
        if self.tolerance is not None or self.stationarity is not None:
            raise ValueError(
                "Implicit judges w_T and its system by the whole inner objective, but the problem "
                "has batches: give a problem without, use Reverse, or accept the stochastic method "
                "with tolerance=None and stationarity=None"
            )
        if isinstance(self.solver, ConjugateGradient | Dense):
            raise ValueError(  # noqa: TRY004  (another solver, and not another type)
                f"{type(self.solver).__name__} needs the same operator in every product, and with "
                "batches each product has another one: take FixedPoint or Neumann"
            )


def _judge_stationarity(
    backend: Backend,
    hessian: Callable[[Tree], Tree],
    first: float,
    last: float,
    w: Tree,
    largest: float,
) -> Result:
    # Written so that a NaN is refused.
    if last <= largest * first or last <= _rounding(backend, hessian, w):
        return Result()
    return Result(code=Code.NOT_STATIONARY, measured=last / first if first > 0 else math.inf)


def _rounding(backend: Backend, hessian: Callable[[Tree], Tree], w: Tree) -> float:
    """Return 100 ε ‖H‖ (1 + ‖w‖), which scales as L does; ‖H‖ is from powers on w and on ones.

    In half precision, 100 ε would be near 1 and accept anything: 0.03 takes its place.
    """
    curvature = 0.0
    for probe in (w, map_leaves(backend.namespace.ones_like, w)):
        image = hessian(probe)
        for before, after in ((probe, image), (image, hessian(image))):
            size = norm(before, backend)
            curvature = max(curvature, norm(after, backend) / size if size > 0 else 0.0)
    return min(100 * epsilon(w, backend), 0.03) * curvature * (1 + norm(w, backend))


def _judge_solution(
    backend: Backend, hessian: Callable[[Tree], Tree], v: Tree, b: Tree, largest: float | None
) -> Result:
    size = norm(b, backend)
    if not math.isfinite(size):
        return Result()  # The outer objective is at fault, not the solver: the gradient shows it.
    if not math.isfinite(norm(v, backend)):
        return Result(code=Code.NOT_SOLVED, measured=math.inf)
    if largest is None:
        return Result()
    residual = distance(hessian(v), b, backend)
    if residual <= largest * size:
        return Result()
    return Result(code=Code.NOT_SOLVED, measured=residual / size if size > 0 else math.inf)
