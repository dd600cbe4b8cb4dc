"""A tree of hyperparameters as a safetensors file that others read, and back.

The tensors have the names of their places; the metadata has the tree in JSON, so that keys may hold
any text and a tree comes back as it was. Every dtype of PyTorch and JAX is kept, bfloat16 too.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from bilevel_apps.errors import InputError
from bilevel_core.tree import named_leaves
from bilevel_core.types import Tree

__all__ = ["leaf_names", "load_hyperparameters", "tree_bytes"]

TREE = "tree"  # the key of the metadata


def leaf_names(tree: Tree) -> list[str]:
    """Return a name for each leaf, none twice: `lam`, `lr`, `layers.0`."""
    names = []
    for path, _ in named_leaves(tree):
        text = path.replace("['", ".").replace("[", ".").replace("']", "").replace("]", "")
        names.append(text.strip(".") or "lam")
    again = Counter(names)
    # Keys that hold the separator may give one name to two places.
    return [f"{name}#{k}" if again[name] > 1 else name for k, name in enumerate(names)]


def tree_bytes(tree: Tree) -> bytes:
    """Return the file's bytes.

    Raises:
        TypeError: a key that JSON has not, or a leaf that is no array or number.
    """
    names = iter(leaf_names(tree))
    tensors: dict[str, Tensor] = {}
    record = _record(tree, names, tensors)
    return safetensors.torch.save(tensors, metadata={TREE: json.dumps(record)})


def load_hyperparameters(path: Path) -> Tree:
    """Return the tree that `bilevel-tune` saved; leaves of JAX need JAX, named tuples are tuples.

    Raises:
        InputError: the file cannot be read, or is no such file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {})[TREE])
            return _tree(record, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path}: not hyperparameters of bilevel-tune ({type(error).__name__}): give the file "
            "of a tuning's folder"
        ) from None


def _record(tree: Tree, names: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str | int | float | bool | None):
                raise TypeError(f"hyperparameters: the key {key!r} cannot be saved: take a text")
        return {"dict": [[key, _record(child, names, tensors)] for key, child in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_record(child, names, tensors) for child in tree]}
    name = next(names)
    tensors[name], kind = _tensor(tree)
    return {kind: name}


def _tensor(leaf: Any) -> tuple[Tensor, str]:
    if isinstance(leaf, Tensor):
        return leaf.detach().cpu().contiguous().clone(), "torch"
    if isinstance(leaf, bool | int | float):
        return torch.tensor(leaf, dtype=None if isinstance(leaf, int) else torch.float64), "number"
    array = np.array(leaf)
    kind = "jax" if type(leaf).__module__.startswith("jax") else "numpy"
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16), kind
    return torch.from_numpy(array), kind


def _tree(record: Any, tensors: dict[str, Tensor]) -> Tree:
    ((kind, content),) = record.items()
    if kind == "dict":
        return {key: _tree(child, tensors) for key, child in content}
    if kind in ("list", "tuple"):
        children = [_tree(child, tensors) for child in content]
        return children if kind == "list" else tuple(children)
    tensor = tensors[content]
    if kind == "number":
        return tensor.item()
    if kind == "torch":
        return tensor
    if kind == "jax":
        import jax.numpy as jnp

        narrow = tensor.dtype == torch.bfloat16
        return jnp.asarray(tensor.float().numpy() if narrow else tensor.numpy(), _named(tensor))
    return tensor.numpy()


def _named(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
