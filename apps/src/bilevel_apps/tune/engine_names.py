"""The engines by the names that the command line gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from bilevel_apps.errors import InputError
from bilevel_core import (
    Checkpointed,
    Direct,
    Exact,
    Forward,
    Implicit,
    Reverse,
    Spectral,
    Truncated,
    Unrolled,
)
from bilevel_core.abstract import Engine

__all__ = ["ENGINES", "ONLINE", "engine_named"]

ONLINE = "online"

Maker = Callable[[int], Engine] | None

# Each name with its engine, and with what makes it of the number after a colon.
ENGINES: Mapping[str, tuple[Callable[[], Engine] | None, Maker]] = MappingProxyType(
    {
        "reverse": (Reverse, None),
        "unrolled": (Unrolled, None),
        "checkpointed": (Checkpointed, lambda states: Checkpointed(budget=states)),
        "truncated": (None, lambda steps: Truncated(horizon=steps)),
        "forward": (Forward, lambda tangents: Forward(chunk=tangents)),
        "implicit": (Implicit, None),
        "exact": (Exact, None),
        "spectral": (Spectral, None),
        "direct": (Direct, None),
    }
)


def engine_named(text: str) -> Engine:
    """Return the engine for a name such as `reverse` or `truncated:20`.

    Raises:
        InputError: there is no such engine, or its number is missing, unexpected or refused.
    """
    name, colon, number = text.partition(":")
    if name not in ENGINES:
        raise InputError(
            f"`engine`={text}: no such engine; choose one of {', '.join(ENGINES)} or {ONLINE}"
        )
    plain, numbered = ENGINES[name]
    if not colon:
        if plain is None:
            raise InputError(f"`engine`={text}: needs a number, such as {name}:20")
        return plain()
    if numbered is None:
        raise InputError(f"`engine`={text}: {name} takes no number")
    try:
        return numbered(int(number))
    except ValueError as error:
        raise InputError(f"`engine`={text}: {error}") from error
