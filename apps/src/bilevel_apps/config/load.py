"""Settings from a preset, a YAML file and `key=value`, and a `Config` of them."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bilevel_apps.config.safe_yaml import dump_yaml, parse_yaml
from bilevel_apps.config.schema import Config, Section
from bilevel_apps.errors import InputError

__all__ = [
    "describe_keys",
    "dump_config",
    "list_presets",
    "load_config",
    "load_preset",
    "parse_config",
    "short",
    "with_settings",
]


def list_presets() -> tuple[str, ...]:
    """Return the presets' names, such as `omniglot-5way-1shot` and `paper/omniglot-5way-1shot`."""
    root = resources.files("bilevel_apps.config") / "presets"
    own = [entry.name for entry in root.iterdir()]
    paper = [f"paper/{entry.name}" for entry in (root / "paper").iterdir()]
    return tuple(sorted(name[:-5] for name in own + paper if name.endswith(".yaml")))


def load_preset(name: str) -> dict[str, Any]:
    """Return a preset's settings.

    Raises:
        InputError: no such preset.
    """
    if name not in list_presets():
        raise InputError(
            f"`preset`={name}: no such preset; choose one of {', '.join(list_presets())}"
        )
    text = (resources.files("bilevel_apps.config") / "presets" / f"{name}.yaml").read_text("utf-8")
    return _mapping(text, f"preset {name}")


def load_config(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML file.

    Raises:
        InputError: the file cannot be read or is not a mapping.
    """
    # Here, so that `--help` loads no library for it.
    from bilevel_data import DataError
    from bilevel_data.files.limits import MAX_CONFIG_BYTES
    from bilevel_data.files.regular_file import read_plain

    remedy = "give a YAML file, such as the config.yaml of a run"
    try:
        text = read_plain(path, MAX_CONFIG_BYTES, what="settings", remedy=remedy).decode()
    except FileNotFoundError:
        raise InputError(f"{path}: cannot be read (No such file or directory): {remedy}") from None
    except DataError as error:
        raise InputError(str(error)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected YAML, found something that is not text") from error
    return _mapping(text, str(path))


def with_settings(settings: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return settings with `key.sub=value` assignments applied; values are read as YAML.

    Raises:
        InputError: an assignment without `=`, or into something that is not a section.
    """
    result = {key: dict(v) if isinstance(v, dict) else v for key, v in settings.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(
                f"`assignments`={assignment}: expected KEY=VALUE, such as train.steps=100"
            )
        value = parse_yaml(text, f"`assignments`={assignment}")
        *sections, last = key.split(".")
        target: Any = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise InputError(f"`assignments`={assignment}: {section} is a value, not a section")
        target[last] = value
    return result


def parse_config(settings: Mapping[str, Any], source: str) -> Config:
    """Validate settings; `source` stands in the message.

    Raises:
        InputError: an unknown key, or a value of the wrong type or range.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{source}: unknown key {key}; {_suggestion(key)}") from None
        expected = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "model_type":
            expected = f"a section, with keys such as {key}.{_first_key(key)}"
        raise InputError(f"{source}: {key}: {expected}, found {short(first['input'])}") from None


def short(value: object) -> str:
    """Return a value of a file for a message: on one line, not long, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"


def _first_key(section: str) -> str:
    return next(k for k in describe_keys() if k.startswith(f"{section}.")).partition(".")[2]


def dump_config(config: Config) -> str:
    """Return a configuration as YAML that `load_config` reads back."""
    return dump_yaml(config.model_dump(mode="json"))


def _mapping(text: str, source: str) -> dict[str, Any]:
    loaded = parse_yaml(text, source)
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{source}: expected keys and values, found {type(loaded).__name__}")
    return loaded


def describe_keys() -> dict[str, str]:
    """Return the default and the meaning of every key, as a line."""
    lines = {}
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            parts = {f"{name}.{sub}": inner for sub, inner in section.model_fields.items()}
        else:
            parts = {name: field}
        for key, part in parts.items():
            default = "null" if part.default is None else str(part.default).lower()
            lines[key] = f"{default:13} {part.description}"
    return lines


def _suggestion(key: str) -> str:
    sections = {known.partition(".")[0] for known in describe_keys()}
    close = difflib.get_close_matches(key, [*describe_keys(), *sections], n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(describe_keys())}"
