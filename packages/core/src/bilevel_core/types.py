"""The two words that every signature uses."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Array", "Tree"]

Array: TypeAlias = Any
"""An array of the framework in use, such as a `torch.Tensor`."""

Tree: TypeAlias = Any
"""An array, or a dict, list or tuple of trees."""
