"""Hyperparameter optimisation: what to tune (tuning), where it is found (target), the run."""

from bilevel_apps.tune.tuning import Figures, HistoryRow, Tuning

__all__ = ["Figures", "HistoryRow", "Record", "Tuning"]

Record = HistoryRow
"""What a row of the history was called before; it goes with the next version."""
