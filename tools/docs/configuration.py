"""Reference pages of the configuration: every key, and every preset."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import resources
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bilevel_apps import config
from bilevel_apps.config import Config, list_presets

__all__ = ["keys_page", "presets_page"]

# Searched for by its name, a key comes before whatever else has the words of it.
KEYS = """---
search:
  boost: 3
---

# Configuration keys

What a run is, key by key. Give them in a YAML file (`bilevel-train settings.yaml`), or one at a
time with `--set KEY=VALUE`, on top of a [preset](presets.md). A run's folder holds all of them,
resolved, as `config.yaml`. `null` means that the key is not set.
"""
PRESETS = """# Presets

`bilevel-train --preset NAME` starts from one of these; `--set KEY=VALUE` changes single
[keys](configuration.md). Keys that a preset leaves out have their default. Those named `paper/…`
have the settings of the paper.
"""


def keys_page() -> str:
    """Return the page of all keys, a heading each, so that a search finds them by name."""
    return KEYS + "".join(_sections())


def _sections() -> Iterator[str]:
    plain, sections = {}, {}
    for name, field in Config.model_fields.items():
        (sections if _is_section(field) else plain)[name] = field
    yield "\n## The run\n"
    yield from (_entry(name, field) for name, field in plain.items())
    for name, field in sections.items():
        section: Any = field.annotation
        yield f"\n## {name}\n\n{inspect.getdoc(section)}\n"
        yield from (_entry(f"{name}.{key}", part) for key, part in section.model_fields.items())


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _entry(key: str, field: FieldInfo) -> str:
    default = "null" if field.default is None else str(field.default).lower()
    text = str(field.description)
    return (
        f"\n### {key} {{ #{key} }}\n\n{text[0].upper()}{text[1:]}.\n\n"
        f"Takes {_type_name(field.annotation)}. Default: `{default}`.\n"
    )


def _type_name(annotation: Any) -> str:
    """Return what a value may be, in words of YAML."""
    known = {int: "a whole number", float: "a number", bool: "`true` or `false`", str: "a text"}
    if annotation in known:
        return known[annotation]
    if annotation is type(None):
        return "`null`"
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    if parts and all(isinstance(part, str | int) for part in parts):
        return "one of " + ", ".join(f"`{part}`" for part in parts)
    names = list(
        dict.fromkeys(
            _type_name(part) for part in parts if isinstance(part, type) or get_args(part)
        )
    )
    if str(annotation).startswith("tuple"):
        return f"a list: {names[0]} each"
    if str(annotation).startswith("dict"):
        return f"a mapping, each value {' or '.join(names[1:])}"
    return " or ".join(names)


def presets_page() -> str:
    """Return the page of all presets with their text."""
    root = resources.files(config) / "presets"
    parts = [PRESETS]
    for name in list_presets():
        text = (root / f"{name}.yaml").read_text("utf-8").strip()
        parts.append(f"\n## {name}\n\n```yaml\n{text}\n```\n")
    return "".join(parts)
