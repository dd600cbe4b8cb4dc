"""The record of a run in MLflow."""

from bilevel_apps.tracking.address import default_uri
from bilevel_apps.tracking.tracker import Target, Tracker, open_tracker

__all__ = ["Target", "Tracker", "default_uri", "open_tracker"]
