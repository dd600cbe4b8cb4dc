"""The array frameworks that core runs on, under one face, so that one test serves both."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from bilevel_core.tree import map_leaves

try:
    import jax
except ImportError:  # the extra is optional
    jax = None
else:
    jax.config.update("jax_enable_x64", True)
    if kept := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # JAX does not write these files at once: two workers would read each other's halves.
        worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
        jax.config.update("jax_compilation_cache_dir", f"{kept}/{worker}")


@dataclass(frozen=True)
class Framework:
    """A framework's array functions, and the way to its arrays and back."""

    name: str
    xp: Any

    def __str__(self) -> str:
        return self.name

    def arrays(self, tree: Any) -> Any:
        """Return a tree of tensors or numbers as a tree of this framework's float64 arrays."""
        return map_leaves(
            lambda leaf: self.xp.asarray(np.asarray(leaf, dtype=np.float64).copy()), tree
        )

    def tensors(self, tree: Any) -> Any:
        """Return a tree of this framework's arrays as tensors."""
        return map_leaves(lambda leaf: torch.tensor(np.asarray(leaf)), tree)


TORCH = Framework("torch", torch)
JAX = Framework("jax", None if jax is None else jax.numpy)
_JAX_IS_THERE = pytest.mark.skipif(jax is None, reason="jax is not installed (extra [jax])")
# Compiling takes most of the time of the tests of core.
FRAMEWORKS = [TORCH, pytest.param(JAX, marks=[pytest.mark.jax, _JAX_IS_THERE])]


def needs_jax(test):
    """Mark a test that is of JAX alone."""
    return pytest.mark.jax(_JAX_IS_THERE(test))


def crossed(*axes, on_jax):
    """All combinations on torch, and on JAX those of fewer axes, as each compiles a program.

    The framework is the last value of each.
    """
    torch_cases = [(*values, TORCH) for values in product(*axes)]
    marks = [pytest.mark.jax, _JAX_IS_THERE]
    return torch_cases + [
        pytest.param(*values, JAX, marks=marks) for chosen in on_jax for values in product(*chosen)
    ]


each_framework = pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
