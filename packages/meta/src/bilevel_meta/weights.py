"""λ in a file."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bilevel_data.files.atomic import commit, temporary

__all__ = ["load_weights", "save_weights"]

FORMAT = "bilevel-learner-1"


def save_weights(learner: nn.Module, path: Path) -> None:
    """Write the state of a learner to a safetensors file, whole or not at all."""
    state = {name: tensor.detach().contiguous() for name, tensor in learner.state_dict().items()}
    metadata = {"format": FORMAT, "method": type(learner).__name__}
    content = safetensors.torch.save(state, metadata)
    with temporary(path) as unfinished:
        unfinished.write_bytes(content)
        commit(unfinished, path)


def load_weights(learner: nn.Module, path: Path) -> None:
    """Give a learner the state of a file.

    Raises:
        ValueError: no safetensors file, or names or shapes that are not the learner's.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None
    state = _part(found, "average") or _part(found, "model") or found
    own = learner.state_dict()
    differing = sorted(state.keys() ^ own.keys()) or sorted(
        name for name, tensor in state.items() if tensor.shape != own[name].shape
    )
    if differing:
        raise ValueError(
            f"{path}: not the weights of this {type(learner).__name__}, which differs in "
            f"{', '.join(differing[:3])}: make the learner as the one that was saved"
        )
    with torch.no_grad():
        learner.load_state_dict(state)


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return a part of a run's checkpoint, under the names of the model."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
