"""Solvers of linear systems that are known by their products, one per file."""

from bilevel_core.linear.conjugate_gradient import ConjugateGradient
from bilevel_core.linear.dense import Dense
from bilevel_core.linear.fixed_point import FixedPoint
from bilevel_core.linear.neumann import Neumann

__all__ = ["ConjugateGradient", "Dense", "FixedPoint", "Neumann"]
