"""The folder of a sweep: what was planned, and what its children came to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from pydantic import TypeAdapter

from bilevel_apps.config.safe_yaml import EXPONENT
from bilevel_apps.errors import InputError
from bilevel_apps.sweep.axes import Settings
from bilevel_apps.sweep.table import Child, as_csv, short
from bilevel_apps.system.files import is_there, read_json, write_text

__all__ = ["SweepFolder", "child_name"]

FORMAT = "bilevel-sweep-1"
LONGEST_NAME = 100


@final
@dataclass(frozen=True)
class SweepFolder:
    """sweep.json, children.csv and a run's folder a child."""

    path: Path

    @property
    def file(self) -> Path:
        """The plan and the children's records."""
        return self.path / "sweep.json"

    @property
    def table(self) -> Path:
        """The children, best first, for a spreadsheet."""
        return self.path / "children.csv"

    def began(self) -> bool:
        """Say whether the folder holds a sweep."""
        return is_there(self.file)

    def save(
        self, plan: Mapping[str, Any], settings: Mapping[str, Any], children: Sequence[Child]
    ) -> None:
        """Write both files.

        Raises:
            RunError: a file cannot be written.
        """
        document = {
            "format": FORMAT,
            "plan": dict(plan),
            "settings": dict(settings),
            "children": [asdict(child) for child in children],
        }
        write_text(self.file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        write_text(self.table, as_csv(children))

    def load(self) -> tuple[dict[str, Any], dict[str, Any], list[Child]]:
        """Return what was saved.

        Raises:
            InputError: the file is damaged.
        """
        try:
            document = read_json(self.file)
            if document["format"] != FORMAT:
                raise self.damaged()
            children = TypeAdapter(list[Child]).validate_python(document["children"])
            read = [replace(child, settings=_numbers(child.settings)) for child in children]
            return dict(document["plan"]), dict(document["settings"]), read
        except (OSError, ValueError, KeyError, TypeError):
            raise self.damaged() from None

    def damaged(self) -> InputError:
        """Return what to say of a record that cannot be used."""
        return InputError(
            f"{self.file}: damaged, or not a sweep of this version: restore a copy, or choose "
            "another `out`"
        )


def _numbers(settings: Settings) -> Settings:
    """Return settings in which 1e-3 is a number: sweeps of earlier versions have it as text."""
    return {
        key: float(value) if isinstance(value, str) and EXPONENT.match(value) else value
        for key, value in settings.items()
    }


def child_name(number: int, settings: Settings) -> str:
    """Return `2-inner.steps=5-model.name=c4l`, with letters that every file system takes."""
    parts = [f"{key}={short(value)}" for key, value in settings.items()]
    name = re.sub(r"[^\w.=+-]+", "_", "-".join([str(number), *parts]), flags=re.ASCII)
    return name[:LONGEST_NAME]
