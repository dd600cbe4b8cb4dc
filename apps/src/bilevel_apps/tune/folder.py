"""The folder of a tuning: what is in it, each file written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, final

import numpy as np

from bilevel_apps.errors import InputError
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.system.files import is_there, write_text, write_whole
from bilevel_apps.tune.hyperparameters import leaf_names, tree_bytes
from bilevel_apps.tune.tuning import HistoryRow
from bilevel_core.tree import leaves
from bilevel_core.types import Tree

__all__ = ["TuneFolder", "arrays_of", "next_folder"]


@final
@dataclass(frozen=True)
class TuneFolder:
    """The history, the best λ, the figures and the picture."""

    path: Path

    @property
    def history(self) -> Path:
        """One record a hyper-iteration."""
        return self.path / "history.json"

    @property
    def hyperparameters(self) -> Path:
        """The tuned λ: a tensor a leaf, by its place in the tree, and the tree."""
        return self.path / "hyperparameters.safetensors"

    @property
    def figures(self) -> Path:
        """What was run, and the held-out figures."""
        return self.path / "figures.json"

    @property
    def picture(self) -> Path:
        """The history and the tuned λ, drawn."""
        return self.path / "history.png"

    def files(self) -> list[Path]:
        """Return the files that are there."""
        kinds = (self.history, self.hyperparameters, self.figures, self.picture)
        return [path for path in kinds if is_there(path)]

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Make the folder and keep it to this process.

        Raises:
            InputError: it holds a run, cannot be written, or another process uses it.
        """
        with RunFolder(self.path).exclusive():
            self.refuse_another()
            yield

    def refuse_another(self) -> None:
        """Refuse a folder that holds a run already.

        Raises:
            InputError: it does.
        """
        folder = RunFolder(self.path)
        if folder.began() or folder.trained():
            raise InputError(f"{self.path}: holds a run of bilevel-train: choose another --out")
        if self.files():
            raise InputError(f"{self.path}: holds a tuning already: choose another `out`")

    def save_history(self, records: Sequence[HistoryRow]) -> None:
        """Write the records."""
        rows = ",\n".join(json.dumps(asdict(record)) for record in records)
        write_text(self.history, f"[\n{rows}\n]\n")

    def save_hyperparameters(self, lam: Tree) -> None:
        """Write λ."""
        content = tree_bytes(lam)
        write_whole(self.hyperparameters, lambda scratch: scratch.write_bytes(content))

    def save_figures(self, figures: Mapping[str, Any]) -> None:
        """Write what was run and what it came to."""
        text = json.dumps(figures, indent=2, ensure_ascii=False)
        write_text(self.figures, f"{text}\n")

    def save_picture(self, draw: Callable[[Path], None]) -> None:
        """Write the picture."""
        write_whole(self.picture, draw)


def next_folder(name: str, parent: Path = Path("runs")) -> Path:
    """Make and return the first of `runs/tune-NAME-1`, `runs/tune-NAME-2`, … that is new.

    Raises:
        InputError: it cannot be made.
    """
    for number in count(1):
        path = parent / f"tune-{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"{path}: cannot make this folder ({error.strerror}): choose another `out`"
            ) from None
        return path
    raise AssertionError  # `count` does not end


def arrays_of(lam: Tree) -> dict[str, Any]:
    """Return the leaves of λ as numpy arrays by their place: `lam`, `lr`, `layers.0`."""
    return {
        name: np.array(_on_host(leaf))
        for name, leaf in zip(leaf_names(lam), leaves(lam), strict=True)
    }


def _on_host(leaf: Any) -> Any:
    if not hasattr(leaf, "detach"):
        return leaf
    tensor = leaf.detach().cpu()  # numpy takes a tensor from the processor's memory
    return tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()
