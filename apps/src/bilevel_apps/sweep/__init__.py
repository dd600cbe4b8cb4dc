"""Trainings over a grid, or over samples, of settings: what `bilevel-train --sweep` runs."""

from bilevel_apps.sweep.plan import Plan
from bilevel_apps.sweep.train_all import sweep

__all__ = ["Plan", "sweep"]
