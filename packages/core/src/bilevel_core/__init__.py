"""Gradients through learning: bilevel problems, inner dynamics and hypergradient engines."""

from bilevel_core.abstract import Backend, Dynamics, Engine, OuterOptimizer
from bilevel_core.dynamics import GradientDescent
from bilevel_core.engines import Reverse
from bilevel_core.flow import Flow
from bilevel_core.hypergradient import hypergradient, solve_inner
from bilevel_core.outer import OuterRun, OuterStep, minimize
from bilevel_core.problem import Problem
from bilevel_core.results import Code, DivergenceError, Hypergradient, Result

__all__ = [
    "Backend",
    "Code",
    "DivergenceError",
    "Dynamics",
    "Engine",
    "Flow",
    "GradientDescent",
    "Hypergradient",
    "OuterOptimizer",
    "OuterRun",
    "OuterStep",
    "Problem",
    "Result",
    "Reverse",
    "hypergradient",
    "minimize",
    "solve_inner",
]
