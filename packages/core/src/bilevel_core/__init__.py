"""Gradients through learning: bilevel problems, inner dynamics and hypergradient engines."""

from bilevel_core.abstract import Backend, Dynamics, Engine, LinearSolver, OuterOptimizer
from bilevel_core.check import CheckedDirection, HypergradientCheck, check_hypergradient
from bilevel_core.constraints import Constraint, Interval, Positive, Simplex
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
    Exact,
    Forward,
    Implicit,
    Reverse,
    Spectral,
    Truncated,
    Unrolled,
)
from bilevel_core.flow import Flow
from bilevel_core.hypergradient import hypergradient, solve_inner
from bilevel_core.linear import ConjugateGradient, Dense, FixedPoint, Neumann
from bilevel_core.online import OnlineRun, minimize_online
from bilevel_core.outer import OuterRun, OuterStep, minimize
from bilevel_core.problem import Problem
from bilevel_core.results import (
    Code,
    ConvergenceError,
    DivergenceError,
    Hypergradient,
    Result,
)
from bilevel_core.stopping import GradientBelow, OuterRecord, Patience, StoppingRule
from bilevel_core.tasks import in_turn, joint_problem, sampled

__all__ = [
    "Adam",
    "Backend",
    "CheckedDirection",
    "Checkpointed",
    "Code",
    "ConjugateGradient",
    "Constraint",
    "ConvergenceError",
    "ConvergenceReport",
    "ConvergenceRow",
    "Custom",
    "Dense",
    "Direct",
    "DivergenceError",
    "Dynamics",
    "Engine",
    "Exact",
    "FixedPoint",
    "Flow",
    "Forward",
    "GradientBelow",
    "GradientDescent",
    "HeavyBall",
    "Hypergradient",
    "HypergradientCheck",
    "Implicit",
    "Interval",
    "LinearSolver",
    "Nesterov",
    "Neumann",
    "OnlineRun",
    "OuterOptimizer",
    "OuterRecord",
    "OuterRun",
    "OuterStep",
    "Patience",
    "Positive",
    "Problem",
    "ProjectedGradient",
    "Result",
    "Reverse",
    "Simplex",
    "Spectral",
    "StoppingRule",
    "Truncated",
    "Unrolled",
    "check_hypergradient",
    "convergence_report",
    "hypergradient",
    "in_turn",
    "joint_problem",
    "minimize",
    "minimize_online",
    "sampled",
    "solve_inner",
]
