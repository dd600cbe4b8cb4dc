"""Gradients through learning: bilevel problems, inner dynamics and hypergradient engines."""

from bilevel_core.abstract import (
    Backend,
    Dynamics,
    Engine,
    Gradient,
    LinearSolver,
    OuterOptimizer,
)
from bilevel_core.along_trajectory import along_trajectory
from bilevel_core.check_hypergradient import (
    CheckedDirection,
    HypergradientCheck,
    check_hypergradient,
)
from bilevel_core.constraints import Constraint, Interval, Positive, Simplex
from bilevel_core.convergence_report import ConvergenceReport, ConvergenceRow, convergence_report
from bilevel_core.dynamics import (
    Adam,
    Custom,
    FirstOrder,
    GradientDescent,
    HeavyBall,
    Nesterov,
    ProjectedGradient,
    Transformation,
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
from bilevel_core.flow import Flow, Instance
from bilevel_core.hypergradient import hypergradient
from bilevel_core.linear import ConjugateGradient, Dense, FixedPoint, Neumann
from bilevel_core.minimize import OuterRun, OuterStep, minimize
from bilevel_core.minimize_online import OnlineRun, minimize_online
from bilevel_core.multitask import in_turn, joint_problem, mean_objective, over_tasks, sampled
from bilevel_core.problem import Problem
from bilevel_core.results import (
    Code,
    ConvergenceError,
    DivergenceError,
    Hypergradient,
    Pulled,
    Result,
    Solution,
)
from bilevel_core.solve_inner import outer_objective, solve_inner
from bilevel_core.stopping import GradientBelow, OuterRecord, Patience, StoppingRule

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
    "FirstOrder",
    "FixedPoint",
    "Flow",
    "Forward",
    "Gradient",
    "GradientBelow",
    "GradientDescent",
    "HeavyBall",
    "Hypergradient",
    "HypergradientCheck",
    "Implicit",
    "Instance",
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
    "Pulled",
    "Result",
    "Reverse",
    "Simplex",
    "Solution",
    "Spectral",
    "StoppingRule",
    "Transformation",
    "Truncated",
    "Unrolled",
    "along_trajectory",
    "check_hypergradient",
    "convergence_report",
    "hypergradient",
    "in_turn",
    "joint_problem",
    "mean_objective",
    "minimize",
    "minimize_online",
    "outer_objective",
    "over_tasks",
    "sampled",
    "solve_inner",
]
