"""Hyperparameter optimisation: what to tune (tuning), where it is found (target), the run."""

from bilevel_apps.tune.tuning import Figures, Record, Tuning

__all__ = ["Figures", "Record", "Tuning"]
