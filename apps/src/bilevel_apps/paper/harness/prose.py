"""The words of an item, which lie beside its code in a Markdown file of the same name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

__all__ = ["Prose", "prose"]

PAPER, DIFFERS = "What the paper says", "What differs"
QUICK = "What else differs at the quick scale"


@final
@dataclass(frozen=True, kw_only=True)
class Prose:
    """What is said of an item.

    Attributes:
        paper: what the paper says.
        differs: what is not as in the paper, or not known of it, a sentence or a few each.
        quick: what else is not, at the quick scale.
    """

    paper: str
    differs: tuple[str, ...]
    quick: tuple[str, ...]


def prose(module: str, **values: object) -> Prose:
    """Return the words beside a module.

    Args:
        module: its `__file__`; the words are in the `.md` file of the same name.
        values: what stands in the place of `{name}`.

    Raises:
        OSError: there is no such file.
    """
    text = Path(module).with_suffix(".md").read_text("utf-8")
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    differs, quick = (_listed(sections.get(name, "")) for name in (DIFFERS, QUICK))
    return Prose(paper=_line(sections.get(PAPER, "")), differs=differs, quick=quick)


def _listed(section: str) -> tuple[str, ...]:
    items = re.split(r"^- ", section, flags=re.MULTILINE)
    return tuple(_line(item) for item in items if item.strip())


def _line(text: str) -> str:
    return " ".join(text.split())
