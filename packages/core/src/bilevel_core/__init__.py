"""Gradients through learning: bilevel problems, inner dynamics and hypergradient engines."""

from bilevel_core.abstract import Backend, Dynamics, Engine, LinearSolver, OuterOptimizer
from bilevel_core.convergence import ConvergenceReport, ConvergenceRow, convergence_report
from bilevel_core.dynamics import (
    Adam,
    Custom,
    GradientDescent,
    HeavyBall,
    Nesterov,
    ProjectedGradient,
)
from bilevel_core.engines import (
    Checkpointed,
    Direct,
    Forward,
    Implicit,
    Reverse,
    Truncated,
    Unrolled,
)
from bilevel_core.flow import Flow
from bilevel_core.hypergradient import hypergradient, solve_inner
from bilevel_core.linear import ConjugateGradient, FixedPoint, Neumann
from bilevel_core.outer import OuterRun, OuterStep, minimize
from bilevel_core.problem import Problem
from bilevel_core.results import (
    Code,
    ConvergenceError,
    DivergenceError,
    Hypergradient,
    Result,
)
from bilevel_core.tasks import joint_problem

__all__ = [
    "Adam",
    "Backend",
    "Checkpointed",
    "Code",
    "ConjugateGradient",
    "ConvergenceError",
    "ConvergenceReport",
    "ConvergenceRow",
    "Custom",
    "Direct",
    "DivergenceError",
    "Dynamics",
    "Engine",
    "FixedPoint",
    "Flow",
    "Forward",
    "GradientDescent",
    "HeavyBall",
    "Hypergradient",
    "Implicit",
    "LinearSolver",
    "Nesterov",
    "Neumann",
    "OuterOptimizer",
    "OuterRun",
    "OuterStep",
    "Problem",
    "ProjectedGradient",
    "Result",
    "Reverse",
    "Truncated",
    "Unrolled",
    "convergence_report",
    "hypergradient",
    "joint_problem",
    "minimize",
    "solve_inner",
]
