"""Hypergradient engines, one a file."""

from bilevel_core.engines.reverse import Reverse

__all__ = ["Reverse"]
