"""How near f_T and its gradient are to those of the exact problem, as T grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

from bilevel_core.abstract import Dynamics, Engine
from bilevel_core.arrays import distance, epsilon, norm
from bilevel_core.engines.implicit import Implicit
from bilevel_core.engines.reverse import Reverse
from bilevel_core.hypergradient import checked_run, run_engine
from bilevel_core.problem import Problem
from bilevel_core.types import Tree

__all__ = ["ConvergenceReport", "ConvergenceRow", "convergence_report"]

REVERSE, IMPLICIT = Reverse(), Implicit()


@final
@dataclass(frozen=True, kw_only=True)
class ConvergenceRow:
    """What T inner steps give.

    Attributes:
        steps: T.
        value: f_T(λ).
        value_gap: f_T(λ) - f(λ).
        distance: ‖w_T - w_λ‖.
        grad_error: ‖∇f_T - ∇f‖ / ‖∇f‖.
    """

    steps: int
    value: float
    value_gap: float
    distance: float
    grad_error: float


@final
@dataclass(frozen=True, kw_only=True)
class ConvergenceReport:
    """Rows in the order of T, f(λ), and the contraction factor that the distances show.

    Attributes:
        rows: one a T.
        limit: f(λ), from the longest run and the implicit gradient there.
        rate: q such that ‖w_T - w_λ‖ falls like qᵀ; (ν - μ) / (ν + μ) for gradient descent at its
            best step size (Remark 3.3). None where fewer than two distances are above rounding.
    """

    rows: tuple[ConvergenceRow, ...]
    limit: float
    rate: float | None

    def __str__(self) -> str:
        """Return a table."""
        lines = [f"{'T':>8} {'f_T':>14} {'f_T - f':>12} {'|w_T - w|':>12} {'gradient error':>15}"]
        lines += [
            f"{row.steps:8d} {row.value:14.8g} {row.value_gap:12.3e} {row.distance:12.3e} "
            f"{row.grad_error:15.3e}"
            for row in self.rows
        ]
        rate = "not observed" if self.rate is None else f"{self.rate:.6f}"
        return "\n".join([*lines, f"f = {self.limit:.8g}; contraction a step: {rate}"])


def convergence_report(
    problem: Problem,
    dynamics: Dynamics,
    lam: Tree,
    steps_list: Sequence[int],
    data: Any = None,
    *,
    limit_steps: int | None = None,
    engine: Engine = REVERSE,
    implicit: Implicit = IMPLICIT,
) -> ConvergenceReport:
    """Compare f_T and ∇f_T with f and ∇f at one λ.

    Args:
        problem: with a strongly convex inner objective, so that f is what f_T tends to.
        dynamics: the inner optimiser.
        lam: λ.
        steps_list: the T to look at, at least one.
        data: as for `hypergradient`.
        limit_steps: steps of the run that stands for the limit; None takes ten times the largest T.
        engine: of ∇f_T.
        implicit: the engine of ∇f at the end of the long run.

    Raises:
        ValueError: no T is given.
        ConvergenceError: the long run does not converge; and whatever `hypergradient` raises.

    Cost: a hypergradient for every T, and a run of `limit_steps`.

    Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
    al., 2018), Theorem 3.2 and Remark 3.3.
    """
    if not steps_list:
        raise ValueError("steps_list is empty: give the numbers of steps to look at")
    ordered = sorted(steps_list)
    longest = limit_steps if limit_steps is not None else 10 * max(1, ordered[-1])
    instance = checked_run(problem, dynamics, lam, data, steps=longest, engine=engine)
    backend = instance.backend
    limit = run_engine(implicit, instance)
    w, f = dynamics.params(limit.state), float(limit.value)
    size = norm(limit.grad, backend)
    rows = []
    for steps in ordered:
        computed = run_engine(engine, replace(instance, steps=steps))
        rows.append(
            ConvergenceRow(
                steps=steps,
                value=float(computed.value),
                value_gap=float(computed.value) - f,
                distance=distance(dynamics.params(computed.state), w, backend),
                grad_error=distance(computed.grad, limit.grad, backend) / size if size else 0.0,
            )
        )
    rounding = min(100 * epsilon(w, backend), 0.03) * (1 + norm(w, backend))
    return ConvergenceReport(rows=tuple(rows), limit=f, rate=_rate(rows, rounding))


def _rate(rows: list[ConvergenceRow], rounding: float) -> float | None:
    seen = [row for row in rows if row.distance > rounding]
    factors = [
        (after.distance / before.distance) ** (1 / (after.steps - before.steps))
        for before, after in pairwise(seen)
        if after.steps > before.steps
    ]
    # The lower median; the module `statistics` would take a tenth of the time of an import.
    return sorted(factors)[(len(factors) - 1) // 2] if factors else None
