"""Inner optimisers, one a file."""

from bilevel_core.dynamics.gradient_descent import GradientDescent

__all__ = ["GradientDescent"]
