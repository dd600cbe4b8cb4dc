"""Runs side by side: what MLflow recorded of them, and how they do on the same episodes."""

from bilevel_apps.compare.compare import CompareRequest, compare_runs
from bilevel_apps.compare.listing import list_runs
from bilevel_apps.compare.tracked import TrackedRun, read_runs

__all__ = ["CompareRequest", "TrackedRun", "compare_runs", "list_runs", "read_runs"]
