"""Sets that λ is kept in: what they are, and what an optimiser moves within them."""

from bilevel_core.constraints.sets import Constraint, Interval, Positive, Simplex

__all__ = ["Constraint", "Interval", "Positive", "Simplex"]
