"""YAML of strangers: a few plain values, and nothing that a few lines of it can grow to."""

from __future__ import annotations

import itertools
import re
import reprlib
from typing import Any

import yaml

from bilevel_apps.errors import InputError

__all__ = ["EXPONENT", "dump_yaml", "parse_yaml"]

DEEPEST = 64  # brackets in settings; two are in use


EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z")
"""Numbers such as 5e-3, which are text in YAML 1.1, that of the library, and numbers in 1.2."""


class _Loader(yaml.SafeLoader):
    """One that refuses aliases, tags, and keys of which one would be lost."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"line {line}: an alias (*) uses something again: write it out there")
        if event.tag:  # what cannot be of the type that a tag names makes errors of any kind
            raise InputError(f"line {line}: a tag (!) names a type: remove it")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        keys: set[str] = set()
        for key in [key for key, _ in pairs if isinstance(key, yaml.ScalarNode)]:
            if key.value in keys:
                line, name = key.start_mark.line + 1, reprlib.repr(key.value)
                raise InputError(f"line {line}: {name} stands there twice: remove one")
            keys.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """One that quotes what the loader would take for a number."""


for each in (_Loader, _Dumper):
    each.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def dump_yaml(document: dict[str, Any]) -> str:
    """Return plain values as YAML that `parse_yaml` reads back."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


def parse_yaml(text: str, source: str) -> Any:
    """Return what a YAML text holds; `source` stands in the message.

    Raises:
        InputError: it is not YAML.
    """
    if _depth(text) > DEEPEST:  # of which the scanner would make seconds of work
        raise InputError(f"{source}: brackets nested more than {DEEPEST} deep: correct it")
    loader: Any = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    # Impossible dates and numbers are a ValueError, brackets nested too deep a RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise InputError(f"{source}: not valid YAML{line}: correct it") from error
    finally:
        if loader is not None:
            loader.dispose()


def _depth(text: str) -> int:
    """Return how many brackets are open at once, at most."""
    steps = (1 if c in "[{" else -1 for c in text if c in "[]{}")
    return max(itertools.accumulate(steps), default=0)
