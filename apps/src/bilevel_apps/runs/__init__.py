"""Runs side by side: what MLflow recorded of them, and how they do on the same episodes."""

from bilevel_apps.runs.compare import CompareRequest, compare_runs
from bilevel_apps.runs.listing import list_runs
from bilevel_apps.runs.tracked import TrackedRun, read_runs

__all__ = ["CompareRequest", "TrackedRun", "compare_runs", "list_runs", "read_runs"]
